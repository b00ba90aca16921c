"""Eight-bit trunks: each preparation by itself, and the graph that results."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from fracture_lib.errors import InvalidModel, ModelUnavailable
from fracture_lib.models.int8 import MAX_WEIGHT, prepare_trunk, round_kernel
from fracture_lib.models.keras import write_int8_trunk
from fracture_lib.models.keras_networks import (
    build,
    keras,
    layers,
    load_pretrained,
    read_int8_graph,
    save_trunk,
    stage_output,
)
from fracture_lib.training.learner import build_learner
from fracture_lib.training.recipes import RECIPES
from tests.helpers.training import write_random_resnet50

ARCHITECTURE = {**RECIPES["resnet50"].architecture, "n_stages": 1}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random ResNet50 weights."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    write_random_resnet50(path)
    return path


def build_trunk(weights):
    model = build(ARCHITECTURE, 10)
    load_pretrained(model, weights)
    return keras.Model(model.input, stage_output(model, 1))


def assert_integers(kernel):
    np.testing.assert_array_equal(kernel, np.round(kernel))
    assert np.abs(kernel).max() <= MAX_WEIGHT


def test_round_kernel_keeps_what_the_kernel_does_to_its_inputs():
    rng = np.random.default_rng(0)
    inputs = rng.random((2000, 1)) + 0.1 * rng.random((2000, 30))  # similar to one another, as pixels are
    kernel = rng.normal(size=(30, 8)).astype(np.float32)
    integers, step = round_kernel(kernel, inputs.T @ inputs)

    def error(other):
        return np.square(inputs @ (other * step) - inputs @ kernel).mean()

    assert error(integers) < error(np.round(kernel / step)) / 5
    assert_integers(integers)
    assert np.abs(integers - kernel / step).max() < MAX_WEIGHT / 4


def test_round_kernel_keeps_the_largest_weight_of_each_output_and_zeros():
    kernel = np.float32([[0.3, 0.0, -2.0], [-0.7, 0.0, 0.01]])
    integers, step = round_kernel(kernel, np.eye(2))
    np.testing.assert_allclose((integers * step)[[1, 0], [0, 2]], [-0.7, -2.0])
    np.testing.assert_array_equal(integers[:, 1], 0)


def test_round_kernel_with_inputs_that_are_always_zero_stays_finite():
    integers, step = round_kernel(np.float32([[1.0], [0.013]]), np.diag([4.0, 0.0]))
    assert np.isfinite(integers).all() and np.isfinite(step).all()


def test_prepared_trunk_has_integer_kernels_bounds_and_similar_channels(weights, single_views):
    pixels = single_views.reshape(-1, 128, 128, 1)

    def ranges(model):
        """The largest activation of each channel in the middle of a block."""
        probe = keras.Model(model.input, model.get_layer("layer1_1_relu1").output)
        return probe.predict_on_batch(pixels).max(axis=(0, 1, 2))

    before, trunk = build_trunk(weights), build_trunk(weights)
    outlying = ranges(before).argmax()
    for model in (before, trunk):
        norm = model.get_layer("layer1_1_bn1")
        gamma, beta, mean, variance = norm.get_weights()
        gamma[outlying] *= 100
        beta[outlying] *= 100
        norm.set_weights([gamma, beta, mean, variance])
    prepare_trunk(trunk, pixels)

    for layer in trunk.layers:
        if isinstance(layer, layers.Conv2D):
            assert_integers(layer.get_weights()[0])
        if isinstance(layer, layers.ReLU):
            assert 0 < layer.max_value < np.inf
    spread, spread_before = (ranges(m).max() / np.median(ranges(m)) for m in (trunk, before))
    assert spread_before > 50 and spread < spread_before / 4
    expected, found = (model.predict_on_batch(pixels).mean(axis=(1, 2)) for model in (before, trunk))
    similarity = [np.corrcoef(a, b)[0, 1] for a, b in zip(expected.T, found.T, strict=True)]
    assert np.nanmedian(similarity) > 0.95


@pytest.mark.parametrize("silent", ["layer1.1.bn2", "bn1"], ids=["inside-a-block", "between-blocks"])
def test_trunk_with_a_silent_layer_is_prepared(weights, single_views, tmp_path, silent):
    tensors = load_file(weights)
    for part in ("weight", "bias"):
        tensors[f"{silent}.{part}"] *= 0
    save_file(tensors, tmp_path / "silent.safetensors")
    out = tmp_path / "trunk.safetensors"
    write_int8_trunk(ARCHITECTURE, tmp_path / "silent.safetensors", single_views, out, "random")
    prepared = load_file(out)
    assert all(np.isfinite(tensor).all() for tensor in prepared.values())
    recipe = replace(RECIPES["resnet50"], architecture=ARCHITECTURE)
    assert np.isfinite(build_learner("resnet50", recipe, 0, out).features(single_views)).all()


def test_trunk_whose_activations_are_not_finite_is_not_written(weights, single_views, tmp_path):
    tensors = load_file(weights)
    tensors["layer1.0.bn1.running_var"] -= 1000
    save_file(tensors, tmp_path / "negative.safetensors")
    with pytest.raises(
        InvalidModel, match=r"^negative\.safetensors .* layer layer1_0_relu1 is not finite\. Give another"
    ):
        write_int8_trunk(
            ARCHITECTURE, tmp_path / "negative.safetensors", single_views, tmp_path / "out.safetensors", ""
        )
    assert [file.name for file in tmp_path.iterdir()] == ["negative.safetensors"]


def test_learner_of_a_damaged_graph_names_the_file(weights, tmp_path):
    model = build(ARCHITECTURE, 10)
    load_pretrained(model, weights)
    save_trunk(model, tmp_path / "trunk.safetensors", "random", b"damaged")
    recipe = replace(RECIPES["resnet50"], architecture=ARCHITECTURE)
    with pytest.raises(InvalidModel, match=r"^trunk\.safetensors is damaged\. Delete it and start again\."):
        build_learner("resnet50", recipe, 0, tmp_path / "trunk.safetensors")


def operators_of_session(graph, folder):
    """Return how often each operator runs after ONNX Runtime's optimizations."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3  # the file is for this machine only, says a warning
    onnxruntime.InferenceSession(graph, options)
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_int8_trunk_on_another_backend_than_tensorflow_is_not_written(
    weights, single_views, tmp_path, monkeypatch
):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(ModelUnavailable, match=r"on TensorFlow only\. Install tensorflow"):
        write_int8_trunk(ARCHITECTURE, weights, single_views, tmp_path / "trunk.safetensors", "random")


def test_int8_trunk_computes_in_integers_what_keras_computes(weights, single_views, tmp_path):
    write_int8_trunk(ARCHITECTURE, weights, single_views, tmp_path / "trunk.safetensors", "random")
    assert [file.name for file in tmp_path.iterdir()] == ["trunk.safetensors"]
    graph_file = read_int8_graph(tmp_path / "trunk.safetensors")
    operators = operators_of_session(graph_file, tmp_path)
    assert operators["QLinearConv"] == 11 and operators["Conv"] == operators["Add"] == 0
    graph = onnx.load_from_string(graph_file).graph
    tensors = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    assert len(tensors) == 11, "one per convolution"
    for tensor in tensors:
        values = numpy_helper.to_array(tensor)
        assert np.abs(values.astype(int)).max() == MAX_WEIGHT, "more would overflow without VNNI"

    recipe = replace(RECIPES["resnet50"], architecture=ARCHITECTURE)
    learner = build_learner("resnet50", recipe, 0, tmp_path / "trunk.safetensors")
    found = learner.features(single_views)
    expected = learner.trunk.predict_on_batch(single_views.reshape(-1, 128, 128, 1))
    assert found.shape == expected.shape
    assert np.square(found - expected).mean() < 0.01 * np.square(expected).mean()
