"""The page: its tabs, what answers programs, and the figures of how good the models are."""

from pathlib import Path

from fracture_lib.errors import FractureError

# What an event of Gradio says to join a queue. Those with one film do not wait behind those with many.
ONE_FILM = {"concurrency_id": "one film"}
MANY_FILMS = {"concurrency_id": "many films", "concurrency_limit": 1}


def check_kept(paths):
    """Raise FractureError if one of the uploaded files has been deleted on schedule."""
    if not all(Path(path).exists() for path in paths):
        raise FractureError("What you gave is not kept here any more, as no film is for long: give it again.")
