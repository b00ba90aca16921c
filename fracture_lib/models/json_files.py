"""The JSON files beside a model's weights: read, check against a dataclass, write atomically."""

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from fracture_lib.errors import InvalidModel

__all__ = ["decode", "read_json", "to_json", "write_json"]

_T = TypeVar("_T")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a model folder. Raises InvalidModel."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidModel(f"{path.parent.name} has no {path.name}; it is not a model folder.") from error
    except (OSError, ValueError) as error:
        raise InvalidModel(f"{path.parent.name}/{path.name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InvalidModel(f"{path.parent.name}/{path.name} does not hold a JSON object.")
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file; an existing one stays intact until the new one is complete."""
    partial = path.with_suffix(".partial")
    partial.write_text(to_json(content), encoding="utf-8")
    partial.replace(path)


def to_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def decode(kind: type[_T], content: Mapping[str, Any], name: str) -> _T:
    """Build the dataclass `kind` from parsed JSON; unknown keys are ignored.

    Raises InvalidModel, with `name` and the key, if a required key is missing or has the wrong type.
    """
    return _decode(kind, content, name)


def _decode(kind: Any, value: Any, where: str) -> Any:
    origin, parameters = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):  # only "X | None"
        return None if value is None else _decode(parameters[0], value, where)
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(value, Mapping):
        hints = get_type_hints(kind)
        required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
        if missing := sorted(required - value.keys()):
            raise InvalidModel(f"{where} lacks {', '.join(missing)}; train the model again.")
        return kind(**{k: _decode(hints[k], v, f"{where}: {k}") for k, v in value.items() if k in hints})
    if origin is list and isinstance(value, list):
        return [_decode(parameters[0], item, where) for item in value]
    if origin is tuple and isinstance(value, list | tuple) and len(value) == len(parameters):
        return tuple(_decode(k, item, where) for k, item in zip(parameters, value, strict=True))
    if origin is dict and isinstance(value, Mapping):
        return {key: _decode(parameters[1], item, f"{where}: {key}") for key, item in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    is_false_int = isinstance(value, bool) and kind is int  # a bool is an int in Python, not in JSON
    if kind is Any or (isinstance(kind, type) and isinstance(value, kind) and not is_false_int):
        return value
    raise InvalidModel(f"{where} has an unexpected value ({value!r:.40}); train the model again.")
