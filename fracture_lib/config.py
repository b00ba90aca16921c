"""The two JSON files beside every model's weights: written by training, checked when loaded."""

import json

from fracture_lib.errors import InvalidModel
from fracture_lib.labels import ID2LABEL, LABEL2ID, check_id2label
from fracture_lib.preprocess import PREPROCESSOR_CONFIG

__all__ = ["read_config", "read_json", "write_config", "write_json"]


def read_config(folder):
    """Return config.json as a dict, its classes and its preprocessing checked against ours.

    Raises InvalidModel where the files are missing or made for other preprocessing, UnknownLabel
    where they name other classes.
    """
    config = read_json(folder / "config.json")
    for key in ("model_name", "architecture", "id2label", "temperature"):
        if key not in config:
            raise InvalidModel(f'{folder.name}/config.json lacks "{key}": train the model again.')
    check_id2label(config["id2label"])
    if read_json(folder / "preprocessor_config.json") != PREPROCESSOR_CONFIG:
        raise InvalidModel(
            f"{folder.name} was trained with other preprocessing than this version of the library has."
        )
    return config


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
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidModel(f"{path.parent.name} has no {path.name}: it is no model folder.") from error
    except (OSError, ValueError) as error:
        raise InvalidModel(f"{path.parent.name}/{path.name} cannot be read: {error}") from error


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
