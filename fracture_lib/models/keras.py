"""Keras 3: the custom CNN and ResNet50, their training step, and their files (model.keras, model.onnx).

Nothing here names TensorFlow, so the same code trains on Keras's torch backend where TensorFlow is
missing. The saved models hold no custom objects.
"""

import importlib
import importlib.util
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if "KERAS_BACKEND" not in os.environ and not importlib.util.find_spec("tensorflow"):
    os.environ["KERAS_BACKEND"] = "torch"  # read once, when Keras is imported

# PyTorch's build for CUDA brings Triton, which crashes the process if it is imported after TensorFlow.
with suppress(ImportError):
    importlib.import_module("triton")

import keras
from keras import layers
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from fracture_lib.errors import InvalidArgument, InvalidModel, ModelUnavailable
from fracture_lib.io.views import INPUT_SIZE
from fracture_lib.labels import CLASSES
from fracture_lib.models.cam import ClassifierHead, write_head
from fracture_lib.models.forward import Forward
from fracture_lib.models.onnx import INPUT, OUTPUTS, finish_export
from fracture_lib.models.tensors import write_tensors

__all__ = ["Learner", "load", "load_blocks", "load_pretrained", "resnet50", "three_block_cnn"]

WEIGHTS = "model.keras"
HDF5_COMPRESSION = {"shuffle": True, "compression": "gzip", "compression_opts": 1}
HALF_ABOVE = 5_000_000  # parameters; the kernels of larger models are stored as float16
GRAY_INPUT = "one gray channel in 0..1, no mean/std"  # in the metadata of `Learner.save_trunk`'s files
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

KerasTensor: TypeAlias = Any  # Keras ships no types

_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


# ---- architectures: input [N, 128, 128, 1]; layers named "feature_map", "logits" and "probabilities"


def three_block_cnn(
    channels: Sequence[int],
    strides: Sequence[int],
    pools: Sequence[int],
    dropouts: Sequence[float],
    hidden: int,
    head_dropout: float,
    n_outputs: int = len(CLASSES),
) -> keras.Model:
    """Return the layers of `models.pytorch.ThreeBlockCNN`; output probabilities [N, n_outputs].

    Convolutions and BatchNorms are named after their positions in its blocks.
    """
    x = pixels = keras.Input((INPUT_SIZE, INPUT_SIZE, 1))
    position = 0
    for width, stride, pool, dropout in zip(channels, strides, pools, dropouts, strict=True):
        if stride > 1:
            x = _fold_pixels(x, stride)
            position += 1
        for _ in range(2):
            x = _conv_and_norm(x, width, 3, names=(f"blocks_{position}", f"blocks_{position + 1}"))
            x = layers.LeakyReLU(0.1)(x)
            position += 3
        x = layers.SpatialDropout2D(dropout)(layers.MaxPooling2D(pool)(x))
        position += 2
    x = feature_map = layers.Identity(name="feature_map")(x)
    x = layers.Concatenate()(
        [layers.GlobalAveragePooling2D()(feature_map), layers.GlobalMaxPooling2D()(feature_map)]
    )
    x = layers.LeakyReLU(0.1)(layers.Dense(hidden)(x))
    return keras.Model(pixels, _classify(layers.Dropout(head_dropout)(x), n_outputs))


def _fold_pixels(x: KerasTensor, stride: int) -> KerasTensor:
    """Fold stride x stride pixels of one channel into channels, as torch.nn.PixelUnshuffle does."""
    _, height, width, channels = x.shape
    assert channels == 1  # the order of the folded channels would differ
    height, width = height // stride, width // stride
    x = layers.Reshape((height, stride, width, stride))(x)
    return layers.Reshape((height, width, stride**2))(layers.Permute((1, 3, 2, 4))(x))


def resnet50(
    n_stages: int, hidden: int, head_dropout: float, tuned_stages: int, n_outputs: int = len(CLASSES)
) -> keras.Model:
    """Return ResNet50 v1.5 (stride on the 3x3 convolution) with a new head; output probabilities.

    It reads one gray channel; on gray input, the sum of the three input kernels is the same function. It has
    the first `n_stages` of the four stages. Only the last `tuned_stages` of these and the head are trained,
    and BatchNorm keeps the statistics of the pretraining. Source: He et al.,
    https://arxiv.org/abs/1512.03385.
    """
    x = pixels = keras.Input((INPUT_SIZE, INPUT_SIZE, 1))
    x = layers.ReLU()(_conv_and_norm(x, 64, 7, 2, names=("conv1", "bn1")))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))  # after a ReLU, zero is the minimum
    stages = list(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True))[:n_stages]
    for stage, (width, depth) in enumerate(stages, 1):
        for i in range(depth):
            prefix = f"layer{stage}_{i}_"  # torchvision's names, with "_" for "."
            stride = 2 if i == 0 and stage > 1 else 1
            y = layers.ReLU()(_conv_and_norm(x, width, 1, 1, names=(prefix + "conv1", prefix + "bn1")))
            y = layers.ReLU()(_conv_and_norm(y, width, 3, stride, names=(prefix + "conv2", prefix + "bn2")))
            y = _conv_and_norm(y, 4 * width, 1, 1, names=(prefix + "conv3", prefix + "bn3"))
            if i == 0:
                names = (prefix + "downsample_0", prefix + "downsample_1")
                x = _conv_and_norm(x, 4 * width, 1, stride, names=names)
            x = layers.ReLU(name=f"stage{stage}" if i == depth - 1 else None)(layers.Add()([y, x]))
    backbone = keras.Model(pixels, x)
    frozen = keras.Model(pixels, _trunk_output(backbone, n_stages - tuned_stages)).layers
    for layer in backbone.layers:
        layer.trainable = layer not in frozen and not isinstance(layer, layers.BatchNormalization)
    x = feature_map = layers.Identity(name="feature_map")(x)
    x = layers.Concatenate()(
        [layers.GlobalAveragePooling2D()(feature_map), layers.GlobalMaxPooling2D()(feature_map)]
    )
    x = layers.BatchNormalization(momentum=0.9, name="pooled_norm")(x)  # a few channels have huge values
    x = layers.Dense(hidden, activation="relu")(x)
    return keras.Model(pixels, _classify(layers.Dropout(head_dropout)(x), n_outputs))


def _conv_and_norm(
    x: KerasTensor,
    width: int,
    kernel: int,
    stride: int = 1,
    *,
    names: tuple[str, str],
) -> KerasTensor:
    """Apply a convolution, padded alike on both sides as in PyTorch, and its BatchNorm."""
    if stride > 1 and kernel > 1:  # Keras's "same" would put all of the padding on one side
        x = layers.ZeroPadding2D(kernel // 2)(x)
    padding = "valid" if stride > 1 else "same"
    x = layers.Conv2D(width, kernel, stride, padding, use_bias=False, name=names[0])(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=names[1])(x)


def _classify(x: KerasTensor, n_outputs: int) -> KerasTensor:
    logits = layers.Dense(n_outputs, name="logits")(x)
    return layers.Softmax(name="probabilities")(logits)


def _trunk_output(model: keras.Model, n_stages: int) -> KerasTensor:
    """Return the output of the first stages of a ResNet50."""
    return model.get_layer(f"stage{n_stages}").output


_FAMILIES: dict[str, Callable[..., keras.Model]] = {"cnn": three_block_cnn, "resnet50": resnet50}


def _build(architecture: Mapping[str, Any], n_outputs: int) -> keras.Model:
    options = dict(architecture)
    return _FAMILIES[options.pop("family")](**options, n_outputs=n_outputs)


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


def load_pretrained(model: keras.Model, path: Path) -> None:
    """Copy a ResNet50's weights, safetensors under torchvision's names, into the layers of `resnet50`.

    ImageNet weights expect RGB normalized by mean and standard deviation. That is folded into the first
    convolution and its BatchNorm, which is exact but for the padded border. A file whose metadata says
    "no mean/std" is taken as it is. Raises InvalidModel.
    """
    try:
        with safe_open(path, "np") as file:
            is_normalized = "no mean/std" not in (file.metadata() or {}).get("input", "")
            tensors = {key: file.get_tensor(key).astype(np.float32) for key in file.keys()}  # noqa: SIM118
        kernel = tensors["conv1.weight"]  # [64, 3, 7, 7], or [64, 1, 7, 7] after `Learner.save_trunk`
        if is_normalized:
            mean, std = (np.array(v, np.float32)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
            tensors["bn1.running_mean"] += (kernel * mean / std).sum((1, 2, 3))
            kernel = kernel / std
        tensors["conv1.weight"] = kernel.sum(1, keepdims=True)
        _set_trunk(model, tensors)
    except (KeyError, OSError, SafetensorError, ValueError) as error:
        raise InvalidModel(
            f"{path.name} is not a ResNet50 under torchvision's names ({error}). Give another file."
        ) from error


def load_blocks(model: keras.Model, path: Path) -> None:
    """Copy the blocks of a CNN, which `Learner.save_trunk` of either framework wrote. Raises InvalidModel."""
    try:
        tensors = load_file(path)
        if others := {name for name in tensors if "num_batches" not in name} - _get_trunk(model).keys():
            raise KeyError(min(others))
        _set_trunk(model, tensors)
    except (KeyError, OSError, SafetensorError, ValueError) as error:
        raise InvalidModel(f"{path.name} does not hold the blocks of this network: {error}") from error


def _set_trunk(model: keras.Model, tensors: Mapping[str, NDArray[np.float32]]) -> None:
    """Set the convolutions and BatchNorms from tensors under PyTorch's names. Raises KeyError, ValueError."""
    for layer in _trunk_layers(model):
        name = _pytorch_name(layer)
        if isinstance(layer, layers.Conv2D):
            layer.set_weights([tensors[f"{name}.weight"].transpose(2, 3, 1, 0)])
        elif isinstance(layer, layers.BatchNormalization):
            layer.set_weights([tensors[f"{name}.{part}"] for part in _NORM_PARTS])


def _get_trunk(model: keras.Model) -> dict[str, NDArray[np.float32]]:
    """Return what `_set_trunk` sets."""
    tensors = {}
    for layer in _trunk_layers(model):
        name = _pytorch_name(layer)
        if isinstance(layer, layers.Conv2D):
            tensors[f"{name}.weight"] = layer.get_weights()[0].transpose(3, 2, 0, 1)
        elif isinstance(layer, layers.BatchNormalization):
            parts = zip(_NORM_PARTS, layer.get_weights(), strict=True)
            tensors |= {f"{name}.{part}": array for part, array in parts}
    return tensors


def _trunk_layers(model: keras.Model) -> list[keras.Layer]:
    """Return the layers before the head."""
    return model.layers[: model.layers.index(model.get_layer("feature_map"))]


def _pytorch_name(layer: keras.Layer) -> str:
    """Return torchvision's name of a layer of ResNet50, or the position of one in the blocks of the CNN."""
    name = layer.name.removeprefix("blocks_").replace("downsample_", "downsample.")
    return ".".join(name.split("_", 2)) if name.startswith("layer") else name


def _round_to_half(model: keras.Model) -> None:
    """Round every kernel to a value that float16 holds, so that half the bytes store it exactly.

    Exporters multiply a convolution's kernel by the scale of the BatchNorm behind it. To make this
    product fit float16, too, the scale becomes a power of two and the rest moves into the kernel, which
    leaves the function unchanged.
    """
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            # Layers have torchvision's names: conv1 and bn1, downsample_0 and downsample_1.
            norm = model.get_layer(layer.name.replace("conv", "bn").replace("sample_0", "sample_1"))
            gamma, beta, mean, variance = norm.get_weights()
            deviation = np.sqrt(variance + norm.epsilon)
            scale = np.maximum(np.abs(gamma) / deviation, 1e-12)
            power = np.exp2(np.floor(np.log2(scale)))
            rest = scale / power  # in 1..2
            norm.set_weights([np.sign(gamma) * power * deviation, beta, mean * rest, variance])
            layer.set_weights([_round(layer.get_weights()[0] * rest)])
        elif isinstance(layer, layers.Dense):
            kernel, bias = layer.get_weights()
            layer.set_weights([_round(kernel), bias])


def _round(kernel: NDArray[np.float32]) -> NDArray[np.float32]:
    return kernel.astype(np.float16).astype(np.float32)


def _head(model: keras.Model) -> ClassifierHead:
    """Return the dense layers, the first of them with the normalization before it folded in."""
    dense = [layer.get_weights() for layer in model.layers if isinstance(layer, layers.Dense)]
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

    Float32 values that were rounded to float16 end in zero bits, so this stores them in about half the
    bytes, and every reader still gets plain float32.
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


def _export_onnx(model: keras.Model, path: Path, half: bool) -> None:
    """Write the graph that `models.onnx` describes: channels first, two outputs."""
    pixels = keras.Input((1, INPUT_SIZE, INPUT_SIZE), name=INPUT)
    logits, feature_map = _logits_and_features(model)(layers.Reshape((INPUT_SIZE, INPUT_SIZE, 1))(pixels))
    graph = keras.Model(pixels, [logits, layers.Permute((3, 1, 2))(feature_map)])
    graph.predict_on_batch(np.zeros((1, 1, INPUT_SIZE, INPUT_SIZE), np.float32))  # builds it
    graph.export(path, format="onnx", verbose=False)
    finish_export(path, half)


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
        self.model = _build(architecture, n_outputs)
        self.trunk, trunk_output = None, self.model.input
        if "tuned_stages" in architecture:
            if pretrained is None:
                raise InvalidArgument("A ResNet50 starts from pretrained weights. Give their file.")
            load_pretrained(self.model, pretrained)
            n_frozen_stages = architecture["n_stages"] - architecture["tuned_stages"]
            trunk_output = _trunk_output(self.model, n_frozen_stages)
            self.trunk = keras.Model(self.model.input, trunk_output)
        elif pretrained:
            load_blocks(self.model, pretrained)
        self.tail = keras.Model(trunk_output, self.model.get_layer("logits").output)
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
        self.tail.compile(
            optimizer,
            loss(from_logits=True),
            jit_compile=False,  # on a CPU the compiled step is slower
        )
        self.tail.optimizer.build(self.tail.trainable_variables)

    def features(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.trunk is None:
            return pixels
        return np.asarray(self.trunk.predict_on_batch(_channels_last(pixels)))

    def step(
        self,
        features: NDArray[np.float32],
        targets: NDArray[np.float32],
        learning_rate: float,
        dropout_seed: int,
    ) -> float:
        for variable in self.tail.non_trainable_variables:
            if variable.name == "seed_generator_state":
                variable.assign([dropout_seed, 0])
        self.tail.optimizer.learning_rate = learning_rate * (self.muon_lr_scale or 1)
        return float(self.tail.train_on_batch(self._tail_input(features), targets))

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
        return [np.asarray(keras.ops.convert_to_numpy(v)) for v in self.tail.optimizer.variables]

    def set_optimizer_state(self, state: Sequence[NDArray[Any]]) -> None:
        for variable, array in zip(self.tail.optimizer.variables, state, strict=True):
            variable.assign(array)

    def save_trunk(self, path: Path, source: str) -> None:
        write_tensors(path, _get_trunk(self.model), {"source": source, "input": GRAY_INPUT})

    def save(self, folder: Path) -> None:
        """Write model.keras, head.safetensors and model.onnx; a large model is first rounded to float16."""
        half = self.model.count_params() > HALF_ABOVE
        if half:
            _round_to_half(self.model)
        self.model.save(folder / WEIGHTS)
        if half:
            _compress(folder / WEIGHTS)
        write_head(folder, _head(self.model))
        _export_onnx(self.model, folder / "model.onnx", half)
