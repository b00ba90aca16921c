"""The two JSON files beside every model's weights: written by training, checked when loaded."""

import json
import math

from fracture_lib.errors import InvalidModel
from fracture_lib.labels import ID2LABEL, LABEL2ID, check_id2label
from fracture_lib.preprocess import PREPROCESSOR_CONFIG

__all__ = ["read_config", "read_evaluation", "read_json", "to_json", "write_config", "write_json"]

# What the page shows of every evaluation.json.
_SHOWN = ("model", "protocol", "n", "metrics", "per_class", "confusion_matrix", "reliability", "selective")


def read_config(folder):
    """Return config.json as a dict, its classes and its preprocessing checked against ours.

    Raises InvalidModel where the files are missing, damaged or made for other preprocessing,
    UnknownLabel where they name other classes.
    """
    config = _with_keys(folder / "config.json", ("model_name", "architecture", "id2label", "temperature"))
    temperature = config["temperature"]
    if not (isinstance(temperature, int | float) and 0 < temperature < math.inf):
        raise InvalidModel(f"{folder.name}/config.json has the temperature {temperature}: train it again.")
    try:
        check_id2label(config["id2label"])
    except (AttributeError, ValueError) as error:
        raise InvalidModel(
            f"{folder.name}/config.json has no table id2label: train the model again."
        ) from error
    if read_json(folder / "preprocessor_config.json") != PREPROCESSOR_CONFIG:
        raise InvalidModel(
            f"{folder.name} was trained with other preprocessing than this version of the library has."
        )
    return config


def read_evaluation(folder):
    """Return evaluation.json as a dict that has what the page shows. Raises InvalidModel."""
    return _with_keys(folder / "evaluation.json", _SHOWN)


def _with_keys(path, keys):
    content = read_json(path)
    if missing := [key for key in keys if key not in content]:
        raise InvalidModel(
            f"{path.parent.name}/{path.name} lacks {', '.join(missing)}: train the model again."
        )
    return content


def write_config(folder, **entries):
    """Write config.json, with the classes beside `entries`, and preprocessor_config.json."""
    write_json(
        folder / "config.json",
        {
            "model_type": "fracture-classifier",
            **entries,
            "id2label": ID2LABEL,
            "label2id": LABEL2ID,
        },
    )
    write_json(folder / "preprocessor_config.json", PREPROCESSOR_CONFIG)


def read_json(path):
    """Return the object in a JSON file beside a model's weights. Raises InvalidModel."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidModel(f"{path.parent.name} has no {path.name}: it is no model folder.") from error
    except (OSError, ValueError) as error:
        raise InvalidModel(f"{path.parent.name}/{path.name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InvalidModel(f"{path.parent.name}/{path.name} holds no JSON object: it is no model's.")
    return content


def write_json(path, content):
    """Write a JSON file of a model; one that is there stays whole until the new one is."""
    partial = path.with_suffix(".partial")
    partial.write_text(to_json(content), encoding="utf-8")
    partial.replace(path)


def to_json(content):
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
