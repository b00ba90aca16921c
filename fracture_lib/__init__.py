"""Fracture types in radiographs, named by three models behind one interface.

    import fracture_lib
    classifier = fracture_lib.load("resnet50")
    for score in classifier.predict("film.png", top_k=3).scores:
        print(score.label, score.probability)

Not a medical device. Importing this package imports no framework.
"""

from importlib import import_module

from wrapt import when_imported

from fracture_lib.classifier import Classifier, Prediction, Score, load
from fracture_lib.errors import (
    FractureError,
    InvalidData,
    InvalidImage,
    InvalidModel,
    ModelUnavailable,
    UnknownLabel,
)
from fracture_lib.labels import CLASSES, FractureClass
from fracture_lib.preprocess import INPUT_SIZE, preprocess, read_film
from fracture_lib.registry import MODELS

__version__ = "0.1.0"


@when_imported("transformers")
def _register(_):
    """So that `pipeline` and the Auto classes load our models, at no cost to who does not use them."""
    import_module("fracture_lib.backends.transformers").register()


__all__ = [
    "CLASSES",
    "INPUT_SIZE",
    "MODELS",
    "Classifier",
    "FractureClass",
    "FractureError",
    "InvalidData",
    "InvalidImage",
    "InvalidModel",
    "ModelUnavailable",
    "Prediction",
    "Score",
    "UnknownLabel",
    "load",
    "preprocess",
    "read_film",
]
