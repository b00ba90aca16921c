"""ONNX Runtime: serves every model, whatever it was trained with.

All exported graphs have one signature: input `pixel_values` [N, 1, 128, 128]; outputs `logits`
[N, 10] and `feature_map` [N, C, h, w], the last convolutional features, from which `fracture_lib.maps`
computes class activation maps without a second pass.
"""

import numpy as np
import onnxruntime

from fracture_lib.errors import InvalidModel, ModelUnavailable

__all__ = ["INPUT", "OUTPUTS", "finish_export", "load"]

INPUT = "pixel_values"
OUTPUTS = ("logits", "feature_map")
THREADS = 2  # for one film, as a Space has two cores


def load(folder):
    """Return the forward function of `folder/model.onnx`. Raises InvalidModel.

    As in every backend it takes float32 [N, 1, 128, 128] and returns logits float32 [N, 10] and the
    feature map float32 [N, C, h, w], or raises ModelUnavailable.
    """
    path = folder / "model.onnx"
    if not path.exists():
        raise InvalidModel(f"{folder.name} has no model.onnx: export the model again.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    # A thread that waits for the other by spinning takes the core from another visitor.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no public base
        raise InvalidModel(f"{folder.name}/model.onnx cannot be read: {error}") from error

    def forward(pixels):
        try:
            return session.run(OUTPUTS, {INPUT: pixels})
        except Exception as error:  # out of memory, or a graph with another signature
            raise ModelUnavailable(f"{folder.name} cannot answer: {error}") from error

    return forward


def finish_export(path, half=False):
    """Bring a framework's ONNX file to the signature above; with `half` store kernels as float16.

    The casts back to float32 are folded when a session starts, so inference runs in float32 at full
    speed; only the file and the precision of the stored kernels are halved.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    # Exporters name outputs as they like; ours differ in rank.
    names = {o.name: OUTPUTS[len(o.type.tensor_type.shape.dim) == 4] for o in graph.output}
    for values in [graph.output, graph.value_info]:
        for value in values:
            value.name = names.get(value.name, value.name)
    for node in graph.node:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]
    # Exporters leave stack traces there, with the paths of the machine that trained.
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
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
