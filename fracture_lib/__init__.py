"""Classify the fracture in a bone X-ray into one of ten types, with three models and their ensemble.

    import fracture_lib

    classifier = fracture_lib.load_model("resnet50")
    prediction = classifier.predict("xray.png")
    print(prediction.label, prediction.probability, prediction.warnings)
    print(prediction.fracture.message)  # a separate detector estimates whether a fracture is visible

Not a medical device. Importing this package imports no deep learning framework.
"""

from fracture_lib.errors import (
    FractureError,
    InvalidArgument,
    InvalidData,
    InvalidImage,
    InvalidModel,
    ModelUnavailable,
    PushError,
    UnknownLabel,
    UnknownModel,
)
from fracture_lib.inference.classifier import Classifier, load, load_model
from fracture_lib.inference.fracture import FractureResult
from fracture_lib.inference.ood import OODResult
from fracture_lib.inference.pipeline import InferencePipeline, check_ood, compare, detect_fracture
from fracture_lib.inference.prediction import ComparisonResult, Prediction, Score
from fracture_lib.io.image import INPUT_SIZE, LoadedImage, load_image, preprocess
from fracture_lib.labels import CLASSES, FractureClass
from fracture_lib.registry import ALL_MODELS, ENSEMBLE, MODELS, list_models

__version__ = "0.7.0"

__all__ = [
    "ALL_MODELS",
    "CLASSES",
    "ENSEMBLE",
    "INPUT_SIZE",
    "MODELS",
    "Classifier",
    "ComparisonResult",
    "FractureClass",
    "FractureError",
    "FractureResult",
    "InferencePipeline",
    "InvalidArgument",
    "InvalidData",
    "InvalidImage",
    "InvalidModel",
    "LoadedImage",
    "ModelUnavailable",
    "OODResult",
    "Prediction",
    "PushError",
    "Score",
    "UnknownLabel",
    "UnknownModel",
    "__version__",
    "check_ood",
    "compare",
    "detect_fracture",
    "list_models",
    "load",
    "load_image",
    "load_model",
    "preprocess",
    "register_auto_classes",
]


def register_auto_classes() -> None:
    """Register the PyTorch model with transformers' Auto classes and `pipeline("image-classification")`.

    Imports torch and transformers.
    """
    from fracture_lib.models.transformers import register_auto_classes

    register_auto_classes()
