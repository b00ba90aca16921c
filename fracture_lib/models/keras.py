"""Keras 3: inference, files (model.keras, model.onnx) and training of the networks in `keras_networks`."""

import tempfile
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fracture_lib.errors import InvalidArgument, InvalidModel, ModelUnavailable
from fracture_lib.io.views import INPUT_SIZE
from fracture_lib.labels import CLASSES
from fracture_lib.models.cam import ClassifierHead, write_head
from fracture_lib.models.forward import Forward
from fracture_lib.models.keras_networks import (
    KerasTensor,
    build,
    keras,
    layers,
    load_blocks,
    load_pretrained,
    read_int8_graph,
    save_trunk,
    stage_output,
)
from fracture_lib.models.onnx import INPUT, OUTPUTS, create_session
from fracture_lib.models.onnx_export import finish_export, join_graphs, quantize_graph

__all__ = ["Learner", "load", "write_int8_trunk"]

WEIGHTS = "model.keras"
HDF5_COMPRESSION = {"shuffle": True, "compression": "gzip", "compression_opts": 1}


# ---- inference


def load(folder: Path) -> Forward:
    """Return the forward function of `folder/model.keras`. Raises InvalidModel."""
    try:
        model = keras.saving.load_model(folder / WEIGHTS, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidModel(f"{folder.name}/{WEIGHTS} cannot be loaded: {error}") from error
    network = _logits_and_features(model)

    def forward(pixels: NDArray[np.float32], /) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        try:
            logits, feature_map = map(np.asarray, network.predict_on_batch(_channels_last(pixels)))
        except Exception as error:  # the exceptions of Keras's backends share no base
            raise ModelUnavailable(f"{folder.name} failed to run: {error}") from error
        return logits, feature_map.transpose(0, 3, 1, 2)

    return forward


def _logits_and_features(model: keras.Model) -> keras.Model:
    return keras.Model(model.input, [model.get_layer(name).output for name in OUTPUTS])


def _channels_last(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    return pixels.reshape(-1, INPUT_SIZE, INPUT_SIZE, 1)  # the same bytes, as there is one channel


# ---- files


def _head(model: keras.Model) -> ClassifierHead:
    """Return the dense layers, the first of them with the normalization before it folded in."""
    dense = [layer.get_weights() for layer in model.layers if isinstance(layer, layers.Dense)]
    for layer in model.layers:
        if isinstance(layer, layers.EinsumDense):  # several heads, whose mean is linear, too
            kernels, biases = layer.get_weights()
            dense.append((np.concatenate(kernels) / len(kernels), biases.mean(axis=0)))
    slopes = [layer.negative_slope for layer in model.layers if isinstance(layer, layers.LeakyReLU)]
    (hidden_kernel, hidden_bias), (logits_kernel, logits_bias) = dense
    for norm in model.layers[model.layers.index(model.get_layer("feature_map")) :]:
        if isinstance(norm, layers.BatchNormalization):
            gamma, beta, mean, variance = norm.get_weights()
            scale = gamma / np.sqrt(variance + norm.epsilon)
            hidden_bias = hidden_bias + (beta - mean * scale) @ hidden_kernel
            hidden_kernel = scale[:, None] * hidden_kernel
    return ClassifierHead(
        hidden_kernel=hidden_kernel,
        hidden_bias=hidden_bias,
        logits_kernel=logits_kernel,
        logits_bias=logits_bias,
        slope=np.array([slopes[-1] if slopes else 0], np.float32),
    )


def _compress(path: Path) -> None:
    """Rewrite a .keras file with its weights shuffled and deflated, which Keras reads without help.

    The kernels of an int8 trunk hold small integers, which take a quarter of their bytes.
    """
    import h5py

    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(scratch)
        weights = Path(scratch) / "model.weights.h5"
        packed = weights.with_suffix(".packed")
        with h5py.File(weights) as source, h5py.File(packed, "w") as target:
            target.attrs.update(source.attrs)

            def copy(name: str, item: Any) -> None:
                if isinstance(item, h5py.Group):
                    new = target.require_group(name)
                else:
                    options = HDF5_COMPRESSION if item.shape else {}  # scalars cannot be compressed
                    new = target.create_dataset(name, data=item[()], **options)
                new.attrs.update(item.attrs)

            source.visititems(copy)
        packed.replace(weights)
        with zipfile.ZipFile(path, "w") as archive:
            for member in ("metadata.json", "config.json", "model.weights.h5"):
                archive.write(Path(scratch) / member, member)


def _export_onnx(model: keras.Model, path: Path) -> None:
    """Write the graph that `models.onnx` describes: channels first, two outputs."""
    pixels = keras.Input((1, INPUT_SIZE, INPUT_SIZE), name=INPUT)
    logits, feature_map = _logits_and_features(model)(layers.Reshape((INPUT_SIZE, INPUT_SIZE, 1))(pixels))
    _export(keras.Model(pixels, [logits, layers.Permute((3, 1, 2))(feature_map)]), path)
    finish_export(path)


def _export_int8(model: keras.Model, trunk: bytes, path: Path) -> None:
    """Write the same graph with a trunk's, which `write_int8_trunk` wrote."""
    _, height, width, channels = model.get_layer("feature_map").output.shape
    features = keras.Input((channels, height, width))
    head = keras.Model(model.get_layer("feature_map").output, model.get_layer("logits").output)
    with tempfile.TemporaryDirectory() as scratch:
        _export(keras.Model(features, head(layers.Permute((2, 3, 1))(features))), Path(scratch) / "head.onnx")
        join_graphs(trunk, Path(scratch) / "head.onnx", path)


def _export(model: keras.Model, path: Path) -> None:
    model.predict_on_batch(np.zeros((1, *model.input.shape[1:]), np.float32))  # builds it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of Keras's use of NumPy
        model.export(path, format="onnx", verbose=False)


def write_int8_trunk(
    architecture: Mapping[str, Any], pretrained: Path, pixels: NDArray[np.float32], path: Path, source: str
) -> None:
    """Write the frozen trunk of a ResNet50 and its int8 graph to a safetensors file.

    A `Learner` that starts from the file trains its head on what the graph returns. `pixels` float32
    [N, 1, 128, 128] in 0..1 show what the network will see; `source` is stored in the metadata. Raises
    InvalidModel, and ModelUnavailable on another backend of Keras than TensorFlow.
    """
    from fracture_lib.models.int8 import prepare_trunk

    if keras.backend.backend() != "tensorflow":  # others export BatchNorms that integers cannot follow
        raise ModelUnavailable(
            "resnet50 is trained with Keras on TensorFlow only. Install tensorflow and unset KERAS_BACKEND."
        )
    model = build(architecture, len(CLASSES))
    load_pretrained(model, pretrained)
    trunk = keras.Model(model.input, stage_output(model, architecture["n_stages"]))
    try:
        prepare_trunk(trunk, _channels_last(pixels))
    except InvalidModel as error:
        raise InvalidModel(f"{pretrained.name} does not work: {error}. Give another file.") from error
    graph_input = keras.Input((1, INPUT_SIZE, INPUT_SIZE), name=INPUT)
    feature_map = trunk(layers.Reshape((INPUT_SIZE, INPUT_SIZE, 1))(graph_input))
    partial = path.with_suffix(".partial")
    with tempfile.TemporaryDirectory() as scratch:
        graph = Path(scratch) / "trunk.onnx"
        _export(keras.Model(graph_input, layers.Permute((3, 1, 2))(feature_map)), graph)
        finish_export(graph)
        quantize_graph(graph, pixels)
        save_trunk(model, partial, source, graph.read_bytes())
    partial.replace(path)  # a kill while writing leaves no damaged file


# ---- training


class _Muon(keras.optimizers.Muon):
    """Muon for convolution kernels and AdamW for the rest; Keras's own takes matrices only.

    A kernel [h, w, in, out] is the matrix [h * w * in, out], the transpose of PyTorch's. The steps equal
    those of `models.pytorch.Muon` beside torch.optim.AdamW.
    """

    def _should_use_adamw(self, variable: Any) -> bool:
        return len(variable.shape) != 4

    def zeropower_via_newtonschulz5(self, x: KerasTensor, steps: int) -> KerasTensor:
        matrix = keras.ops.reshape(x, (-1, x.shape[-1]))
        return keras.ops.reshape(super().zeropower_via_newtonschulz5(matrix, steps), x.shape)


class Learner:
    """One network in training; implements `fracture_lib.training.learner.Learner`.

    `pretrained` is the file that `load_blocks` or, for a ResNet50, which needs it, `load_pretrained` reads.
    """

    def __init__(
        self,
        architecture: Mapping[str, Any],
        seed: int,
        *,
        weight_decay: float,
        clip_norm: float,
        muon_lr_scale: float,
        pretrained: Path | None = None,
        n_outputs: int = len(CLASSES),
    ) -> None:
        keras.utils.set_random_seed(seed)
        self.model = build(architecture, n_outputs)
        self.trunk, trunk_output = None, self.model.input
        self.int8_graph: bytes | None = None
        if "tuned_stages" in architecture:
            if pretrained is None:
                raise InvalidArgument("A ResNet50 starts from pretrained weights. Give their file.")
            load_pretrained(self.model, pretrained)
            n_frozen_stages = architecture["n_stages"] - architecture["tuned_stages"]
            trunk_output = stage_output(self.model, n_frozen_stages)
            self.trunk = keras.Model(self.model.input, trunk_output)
            if not architecture["tuned_stages"] and (graph := read_int8_graph(pretrained)):
                self.int8_graph = graph
                try:
                    self._int8_session = create_session(graph)
                except Exception as error:  # onnxruntime's exceptions share no public base
                    raise InvalidModel(f"{pretrained.name} is damaged. Delete it and start again.") from error
        elif pretrained:
            load_blocks(self.model, pretrained)
        self.tail = keras.Model(trunk_output, self.model.get_layer("logits").output)
        self.n_heads = architecture.get("n_heads")
        # What the loss sees: the logits of each head
        trained = "logits" if self.n_heads is None else "heads"
        self.trained_tail = keras.Model(trunk_output, self.model.get_layer(trained).output)
        self.muon_lr_scale = muon_lr_scale
        if muon_lr_scale:
            optimizer = _Muon(
                weight_decay=weight_decay,
                adam_weight_decay=weight_decay / muon_lr_scale,  # Keras multiplies it by Muon's rate
                adam_lr_ratio=1 / muon_lr_scale,
                rms_rate=None,  # no further scale
                name="muon",
                global_clipnorm=clip_norm,
            )
        else:
            optimizer = keras.optimizers.AdamW(weight_decay=weight_decay, global_clipnorm=clip_norm)
        multilabel = n_outputs != len(CLASSES)
        loss = keras.losses.BinaryCrossentropy if multilabel else keras.losses.CategoricalCrossentropy
        self.trained_tail.compile(
            optimizer,
            loss(from_logits=True),
            jit_compile=False,  # on a CPU the compiled step is slower
        )
        self.trained_tail.optimizer.build(self.trained_tail.trainable_variables)

    def features(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.trunk is None:
            return pixels
        if self.int8_graph:
            (feature_map,) = self._int8_session.run(OUTPUTS[1:], {INPUT: pixels})
            return np.ascontiguousarray(feature_map.transpose(0, 2, 3, 1))
        return np.asarray(self.trunk.predict_on_batch(_channels_last(pixels)))

    def step(
        self,
        features: NDArray[np.float32],
        targets: NDArray[np.float32],
        learning_rate: float,
        dropout_seed: int,
    ) -> float:
        for variable in self.trained_tail.non_trainable_variables:
            if variable.name == "seed_generator_state":
                variable.assign([dropout_seed, 0])
        self.trained_tail.optimizer.learning_rate = learning_rate * (self.muon_lr_scale or 1)
        if self.n_heads:
            targets = np.repeat(targets[:, None], self.n_heads, axis=1)
        return float(self.trained_tail.train_on_batch(self._tail_input(features), targets))

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self.tail.predict_on_batch(self._tail_input(features)))

    def _tail_input(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return _channels_last(features) if self.trunk is None else features

    def get_weights(self) -> list[NDArray[Any]]:
        weights: list[NDArray[Any]] = self.tail.get_weights()
        return weights

    def set_weights(self, weights: Sequence[NDArray[Any]]) -> None:
        self.tail.set_weights(weights)

    def get_optimizer_state(self) -> list[NDArray[Any]]:
        return [np.asarray(keras.ops.convert_to_numpy(v)) for v in self.trained_tail.optimizer.variables]

    def set_optimizer_state(self, state: Sequence[NDArray[Any]]) -> None:
        for variable, array in zip(self.trained_tail.optimizer.variables, state, strict=True):
            variable.assign(array)

    def save_trunk(self, path: Path, source: str) -> None:
        save_trunk(self.model, path, source)

    def save(self, folder: Path) -> None:
        """Write model.keras, head.safetensors and model.onnx."""
        self.model.save(folder / WEIGHTS)
        _compress(folder / WEIGHTS)
        write_head(folder, _head(self.model))
        if self.int8_graph:
            _export_int8(self.model, self.int8_graph, folder / "model.onnx")
        else:
            _export_onnx(self.model, folder / "model.onnx")
