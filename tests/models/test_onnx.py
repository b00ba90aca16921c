"""ONNX Runtime as the serving runtime."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fracture_lib.errors import InvalidModel, ModelUnavailable
from fracture_lib.hub import BUNDLE
from fracture_lib.models import onnx

ROOT = Path(__file__).parent.parent.parent


def test_load_without_graph_raises_invalid_model(tmp_path):
    with pytest.raises(InvalidModel, match=r"no model\.onnx"):
        onnx.load(tmp_path)


def test_forward_with_wrong_input_raises_model_unavailable():
    with pytest.raises(ModelUnavailable, match="pytorch-cnn failed to run"):
        onnx.load(BUNDLE / "pytorch-cnn")(np.zeros((1, 3, 64, 64), np.float32))


def test_prediction_writes_nothing_to_the_home_folder(image_path, tmp_path):
    """ONNX Runtime's telemetry would create a device id and a database of events there."""
    code = f"import fracture_lib; fracture_lib.load_model('pytorch-cnn').predict({str(image_path)!r})"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    environment |= {"HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    assert list(tmp_path.iterdir()) == []
