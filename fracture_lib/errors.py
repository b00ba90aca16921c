"""Every error that a user can cause. Each message is one sentence or two that say what to do."""

__all__ = [
    "FractureError",
    "InvalidData",
    "InvalidImage",
    "InvalidModel",
    "ModelUnavailable",
    "PushRefused",
    "UnknownLabel",
]


class FractureError(Exception):
    """Base of all errors below; catch it to show `str(error)` to a person."""


class InvalidImage(FractureError):
    """The input cannot be read as one still film."""


class InvalidData(FractureError):
    """A folder of films is not laid out as expected, or holds films that cannot be read."""


class UnknownLabel(FractureError):
    """A dataset or a config names a class that is not one of the ten."""


class InvalidModel(FractureError):
    """A model folder is incomplete or was made for other classes or other preprocessing."""


class ModelUnavailable(FractureError):
    """A model reference names nothing that can be reached."""


class PushRefused(FractureError):
    """Something could not be published, or would have gone over something better."""
