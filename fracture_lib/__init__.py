"""Fracture types in radiographs, named by three models behind one interface.

    import fracture_lib
    classifier = fracture_lib.load("resnet50")
    for score in classifier.predict("film.png", top_k=3).scores:
        print(score.label, score.probability)

Not a medical device. Importing this package imports no framework.
"""

import sys
from importlib import import_module
from importlib.machinery import PathFinder

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


class _OnTransformers:
    """Registers our classes as soon as transformers is imported, at no cost to who does not use it."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        spec = PathFinder.find_spec(name, path, target) if name == "transformers" else None
        if spec:
            run = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (run(module), _register())
        return spec


def _register():
    import_module("fracture_lib.backends.transformers").register()


sys.meta_path.insert(0, _OnTransformers)
if "transformers" in sys.modules:
    _register()

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
