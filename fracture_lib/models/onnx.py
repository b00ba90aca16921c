"""ONNX Runtime: serves every model, whatever framework trained it.

All exported graphs of classifiers have one signature: input `pixel_values` [N, 1, 128, 128]; outputs `logits`
[N, 10] and `feature_map` [N, C, h, w], from which `fracture_lib.models.cam` computes class activation maps.
That of the fracture detector is described in `fracture_lib.models.efficientnet`.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

# Before the import: ONNX Runtime would record a device id in the home folder and queue events to upload.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from numpy.typing import NDArray

from fracture_lib.errors import InvalidModel, ModelUnavailable
from fracture_lib.models.forward import Forward

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["INPUT", "OUTPUTS", "THREADS", "clear_traces", "finish_export", "load", "open_session"]

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
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS if threads is None else threads
    # A thread that spins while it waits takes the core from another visitor.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise InvalidModel(f"{path.parent.name}/{path.name} cannot be read. Download it again.") from error


def clear_traces(model: "ModelProto") -> None:
    """Remove stack traces from an exported graph, which hold paths of the machine that trained."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def finish_export(path: Path, half: bool = False) -> None:
    """Bring an exported ONNX file to the signature above; `half` stores its kernels as float16.

    Inference still runs in float32 at full speed: a session folds the casts when it starts.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    # Exporters choose the outputs' names; tell ours apart by rank.
    names = {o.name: OUTPUTS[len(o.type.tensor_type.shape.dim) == 4] for o in graph.output}
    for values in [graph.output, graph.value_info]:
        for value in values:
            value.name = names.get(value.name, value.name)
    for node in graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]
    clear_traces(model)
    casts = []
    for tensor in graph.initializer if half else ():
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        name = tensor.name
        values = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(values, name + "_half"))
        casts.append(helper.make_node("Cast", [name + "_half"], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        graph.node.insert(0, cast)
    onnx.save(model, path)
