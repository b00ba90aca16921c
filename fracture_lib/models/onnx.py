"""ONNX Runtime: serves every model, whatever framework trained it.

All exported graphs of classifiers have one signature: input `pixel_values` [N, 1, 128, 128]; outputs `logits`
[N, 10] and `feature_map` [N, C, h, w], from which `fracture_lib.models.cam` computes class activation maps.
That of the fracture detector is described in `fracture_lib.models.efficientnet`.
"""

import os
from pathlib import Path

import numpy as np

# Before the import: ONNX Runtime would record a device id in the home folder and queue events to upload.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from numpy.typing import NDArray

from fracture_lib.errors import InvalidModel, ModelUnavailable
from fracture_lib.models.forward import Forward

__all__ = ["INPUT", "OUTPUTS", "THREADS", "create_session", "load", "open_session"]

INPUT = "pixel_values"
OUTPUTS = ("logits", "feature_map")
# Per image, as a Space has two cores. What keeps every core busy with an image of its own sets 1.
THREADS = 2


def load(folder: Path) -> Forward:
    """Return the forward function of `folder/model.onnx`. Raises InvalidModel."""
    session = open_session(folder / "model.onnx")

    def forward(pixels: NDArray[np.float32], /) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        try:
            logits, feature_map = session.run(OUTPUTS, {INPUT: pixels})
        except Exception as error:  # out of memory, or a graph with another signature
            raise ModelUnavailable(f"{folder.name} failed to run: {error}") from error
        return logits, feature_map

    return forward


def open_session(path: Path, threads: int | None = None) -> onnxruntime.InferenceSession:
    """Return a session of an ONNX file in a model folder; by default with THREADS. Raises InvalidModel."""
    if not path.exists():
        raise InvalidModel(f"{path.parent.name} has no {path.name}; export the model again.")
    try:
        return create_session(path, threads)
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise InvalidModel(f"{path.parent.name}/{path.name} cannot be read. Download it again.") from error


def create_session(model: Path | bytes, threads: int | None = None) -> onnxruntime.InferenceSession:
    """Return a session of an ONNX file or of the content of one. Raises exceptions of ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS if threads is None else threads
    # A thread that spins while it waits takes the core from another visitor.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
