"""Bring what a framework exports to the signature of `models.onnx`, and a trunk to eight bits."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import compose, helper, numpy_helper

# Before onnxruntime.quantization, as it turns telemetry off
from fracture_lib.models.onnx import INPUT, OUTPUTS

from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static  # isort: skip

__all__ = ["clear_traces", "finish_export", "join_graphs", "quantize_graph"]


class _Chunks(CalibrationDataReader):
    """What calibrates a quantization, a few images at a time."""

    def __init__(self, pixels: NDArray[np.float32]) -> None:
        self.chunks = iter(np.array_split(pixels, -(-len(pixels) // 16)))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        chunk = next(self.chunks, None)
        return None if chunk is None else {INPUT: chunk}


def clear_traces(model: onnx.ModelProto) -> None:
    """Remove stack traces from an exported graph, which hold paths of the machine that trained."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def finish_export(path: Path) -> None:
    """Give the outputs of an exported ONNX file the names that `models.onnx` describes."""
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
    onnx.save(model, path)


def quantize_graph(path: Path, pixels: NDArray[np.float32]) -> None:
    """Make an exported trunk compute in integers of eight bits, with weights of seven.

    `pixels` float32 [N, 1, 128, 128] set the ranges of activations that have no bound.
    """
    model = onnx.load(path)
    _clip_instead_of_minimum(model)
    with _without_root_warnings():  # they recommend pre-processing, which this graph does not need
        quantize_static(
            model,
            path,
            _Chunks(pixels),
            op_types_to_quantize=["Add", "Clip", "Conv", "MaxPool", "Pad", "Relu"],
            per_channel=True,
            reduce_range=True,
            # With signed activations, ONNX Runtime computes many convolutions in float32.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"WeightSymmetric": True},
        )


@contextmanager
def _without_root_warnings() -> Iterator[None]:
    """Drop what ONNX Runtime logs as a warning with the root logger."""
    root = logging.getLogger()
    root.addFilter(_is_above_warning)
    try:
        yield
    finally:
        root.removeFilter(_is_above_warning)


def _is_above_warning(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING


def _clip_instead_of_minimum(model: onnx.ModelProto) -> None:
    """Write bounded ReLUs, which Keras exports as Relu, Min and Max, as what quantization fuses: Clip."""
    graph = model.graph
    producers = {node.output[0]: node for node in graph.node}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))
    for last in [node for node in graph.node if node.op_type == "Max"]:
        minimum = producers[last.input[0]]
        relu = producers[minimum.input[0]]
        bound = f"{last.output[0]}_bound"
        graph.initializer.append(numpy_helper.from_array(constants[minimum.input[1]].reshape(()), bound))
        clip = helper.make_node("Clip", [relu.input[0], "zero", bound], last.output)
        graph.node.insert(list(graph.node).index(last), clip)
        for node in (relu, minimum, last):
            graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def join_graphs(trunk: bytes, head: Path, out: Path) -> None:
    """Write the graph that gives a trunk's feature map to a head, with both outputs."""
    first, second = onnx.load_from_string(trunk), compose.add_prefix(onnx.load(head), "head_")
    (feature_map,), (logits,) = first.graph.output, second.graph.output
    onnx.save(
        compose.merge_models(
            first,
            second,
            [(feature_map.name, second.graph.input[0].name)],
            outputs=[logits.name, feature_map.name],
        ),
        out,
    )
    finish_export(out)
