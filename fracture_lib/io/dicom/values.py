"""Read numbers and terms from DICOM elements, which may be missing, empty, text, lists or out of range."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["numbers", "terms"]


def numbers(dataset: "Dataset", keyword: str) -> list[float]:
    """Return the numbers of an element: none if it is missing or empty, NaN for what is not a number."""
    return [_number(value) for value in _values(dataset, keyword)]


def terms(dataset: "Dataset", keyword: str) -> list[str]:
    """Return the defined terms of an element, in capital letters; none if it is missing or empty."""
    return [str(value).strip().upper() for value in _values(dataset, keyword)]


def _values(dataset: "Dataset", keyword: str) -> list[Any]:
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom raises many types on invalid text
        return [None]
    return [] if value in (None, "") else list(np.ravel(np.array(value, object)))


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
