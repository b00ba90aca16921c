"""Every error that a user can cause. Each message says what is wrong and what to do about it."""

__all__ = [
    "FractureError",
    "InvalidArgument",
    "InvalidData",
    "InvalidImage",
    "InvalidModel",
    "ModelUnavailable",
    "PushError",
    "UnknownLabel",
    "UnknownModel",
]


class FractureError(Exception):
    """Base class; catch it to show `str(error)` to a person."""


class InvalidArgument(FractureError, ValueError):
    """An argument is out of range or of the wrong type."""


class InvalidImage(FractureError, ValueError):
    """The input cannot be read as one still image."""


class InvalidData(FractureError, ValueError):
    """A dataset folder has an unexpected layout or holds unreadable images."""


class UnknownLabel(FractureError, ValueError):
    """A dataset or a config names a class that is not one of the ten."""


class UnknownModel(FractureError, ValueError):
    """A model reference is neither a known name nor an explicit path or Hub repository."""


class InvalidModel(FractureError, ValueError):
    """A model folder is incomplete, damaged or made for other classes or preprocessing."""


class ModelUnavailable(FractureError, OSError):
    """A model cannot be downloaded, or its runtime fails."""


class PushError(FractureError, RuntimeError):
    """Nothing was published, or the repository holds a better model."""
