"""config.json and preprocessor_config.json: written by training, checked when a model is loaded."""

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fracture_lib.errors import InvalidModel
from fracture_lib.io.image import PREPROCESSOR_CONFIG
from fracture_lib.labels import ID2LABEL, LABEL2ID, check_id2label
from fracture_lib.models.json_files import decode, read_json, write_json

__all__ = ["ModelConfig", "read_config", "write_config"]


@dataclass(frozen=True)
class ModelConfig:
    """The part of config.json that this library reads."""

    model_name: str  # a name in MODELS
    architecture: dict[str, Any]  # "family" and the keyword arguments of its builder
    temperature: float  # divides the logits before the softmax
    recipe: dict[str, Any] = field(default_factory=dict)  # what the model was trained with
    seed: int = 0


def read_config(folder: Path) -> ModelConfig:
    """Return config.json; check its classes and the preprocessing against this library.

    Raises InvalidModel if the files are missing, damaged or made for other preprocessing, and
    UnknownLabel if they name other classes.
    """
    content = read_json(folder / "config.json")
    where = f"{folder.name}/config.json"
    config = decode(ModelConfig, content, where)
    if not 0 < config.temperature < math.inf:
        raise InvalidModel(f"{where} has the temperature {config.temperature}; train the model again.")
    try:
        check_id2label(content["id2label"])
    except (AttributeError, KeyError, TypeError) as error:
        raise InvalidModel(f"{where} has no id2label table; train the model again.") from error
    if read_json(folder / "preprocessor_config.json") != PREPROCESSOR_CONFIG:
        raise InvalidModel(f"{folder.name} was trained with different preprocessing than this version uses.")
    return config


def write_config(folder: Path, config: ModelConfig) -> None:
    """Write config.json, with the class tables beside `config`, and preprocessor_config.json."""
    tables = {"id2label": ID2LABEL, "label2id": LABEL2ID}
    write_json(folder / "config.json", {"model_type": "fracture-classifier", **asdict(config), **tables})
    write_json(folder / "preprocessor_config.json", PREPROCESSOR_CONFIG)
