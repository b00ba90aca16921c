"""Fixtures of the tests of inference."""

import numpy as np
import pytest

from fracture_lib import InferencePipeline


@pytest.fixture(scope="module")
def pipeline():
    return InferencePipeline()


@pytest.fixture(scope="module")
def photograph():
    """An image in all colours: uint8 [96, 96, 3]."""
    y, x = np.mgrid[0:1:96j, 0:1:96j]
    return np.uint8(255 * np.dstack([x, y, 1 - x]))
