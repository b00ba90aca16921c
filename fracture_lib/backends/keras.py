"""Keras 3: the custom CNN and ResNet50, their training step, and their files (model.keras, model.onnx).

Nothing here calls TensorFlow by name, so the same code trains on Keras's torch backend where
TensorFlow is missing, and the saved models hold no custom objects.
"""

import importlib.util
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np

if "KERAS_BACKEND" not in os.environ and not importlib.util.find_spec("tensorflow"):
    os.environ["KERAS_BACKEND"] = "torch"  # read once, when Keras is imported

import keras
from keras import layers
from safetensors import safe_open

from fracture_lib.backends.onnx import INPUT, OUTPUTS, finish_export
from fracture_lib.errors import InvalidModel
from fracture_lib.labels import CLASSES
from fracture_lib.maps import Head, write_head
from fracture_lib.preprocess import INPUT_SIZE

__all__ = ["Learner", "load", "load_pretrained", "resnet50", "three_block_cnn"]

WEIGHTS = "model.keras"
PACKED = {"shuffle": True, "compression": "gzip", "compression_opts": 1}
HALF_ABOVE = 10_000_000  # parameters; a larger model's kernels are stored as float16


# ---- architectures: input [N, 128, 128, 1], layers named "feature_map", "logits", "probabilities"


def _conv(x, width, kernel, stride=1, names=(None, None)):
    """Convolution padded alike on both sides, as PyTorch does, and its BatchNorm."""
    if stride > 1 and kernel > 1:  # Keras's "same" would put all of the padding on one side
        x = layers.ZeroPadding2D(kernel // 2)(x)
    padding = "valid" if stride > 1 else "same"
    x = layers.Conv2D(width, kernel, stride, padding, use_bias=False, name=names[0])(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=names[1])(x)


def _classifier(x):
    logits = layers.Dense(len(CLASSES), name="logits")(x)
    return layers.Softmax(name="probabilities")(logits)


def three_block_cnn(channels, strides, pools, dropouts, hidden, head_dropout):
    """The layers of `fracture_lib.backends.pytorch.ThreeBlockCNN`; output probabilities [N, 10]."""
    x = pixels = keras.Input((INPUT_SIZE, INPUT_SIZE, 1))
    for width, stride, pool, dropout in zip(channels, strides, pools, dropouts, strict=True):
        for step in (stride, 1):
            x = layers.LeakyReLU(0.1)(_conv(x, width, 5 if step > 1 else 3, step))
        x = layers.SpatialDropout2D(dropout)(layers.MaxPooling2D(pool)(x))
    x = feature_map = layers.Identity(name="feature_map")(x)
    x = layers.Concatenate()(
        [layers.GlobalAveragePooling2D()(feature_map), layers.GlobalMaxPooling2D()(feature_map)]
    )
    x = layers.LeakyReLU(0.1)(layers.Dense(hidden)(x))
    return keras.Model(pixels, _classifier(layers.Dropout(head_dropout)(x)))


def resnet50(hidden, head_dropout, tuned_stages):
    """ResNet50 v1.5 (stride on the 3x3 convolution) with a new head; output probabilities [N, 10].

    Reads one grey channel: on grey input the sum of the three input kernels is the same function.
    Only the last `tuned_stages` of the four stages and the head are trained; BatchNorm keeps the
    statistics of the pretraining. Source: He et al., https://arxiv.org/abs/1512.03385.
    """
    x = pixels = keras.Input((INPUT_SIZE, INPUT_SIZE, 1))
    x = layers.ReLU()(_conv(x, 64, 7, 2, ("conv1", "bn1")))
    x = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))  # after ReLU, zero is the minimum
    for stage, (width, depth) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True), 1):
        for i in range(depth):
            at = f"layer{stage}_{i}_"  # torchvision's names with "_" for "."
            stride = 2 if i == 0 and stage > 1 else 1
            y = layers.ReLU()(_conv(x, width, 1, 1, (at + "conv1", at + "bn1")))
            y = layers.ReLU()(_conv(y, width, 3, stride, (at + "conv2", at + "bn2")))
            y = _conv(y, 4 * width, 1, 1, (at + "conv3", at + "bn3"))
            if i == 0:
                x = _conv(x, 4 * width, 1, stride, (at + "downsample_0", at + "downsample_1"))
            x = layers.ReLU(name=f"stage{stage}" if i == depth - 1 else None)(layers.Add()([y, x]))
    backbone = keras.Model(pixels, x)
    frozen = keras.Model(pixels, _trunk_end(backbone, tuned_stages)).layers
    for layer in backbone.layers:
        layer.trainable = layer not in frozen and not isinstance(layer, layers.BatchNormalization)
    x = feature_map = layers.Identity(name="feature_map")(x)
    x = layers.GlobalAveragePooling2D()(feature_map)
    x = layers.Dense(hidden, activation="relu")(x)
    return keras.Model(pixels, _classifier(layers.Dropout(head_dropout)(x)))


def _trunk_end(model, tuned_stages):
    """The tensor where the frozen part of a ResNet50 ends."""
    return model.get_layer(f"stage{4 - tuned_stages}").output


_FAMILIES = {"cnn": three_block_cnn, "resnet50": resnet50}


def _build(architecture):
    options = dict(architecture)
    return _FAMILIES[options.pop("family")](**options)


# ---- files


def load_pretrained(model, path):
    """Copy a ResNet50's weights, safetensors in torchvision's names, into `resnet50`'s backbone.

    ImageNet weights expect RGB normalised by mean and deviation; that is folded into the first
    convolution and its BatchNorm (exact but for the padded border). A file whose metadata says
    "no mean/std" is taken as it is. Raises InvalidModel.
    """
    with safe_open(path, "np") as file:
        normalised = "no mean/std" not in (file.metadata() or {}).get("input", "")
        tensors = {key: file.get_tensor(key).astype(np.float32) for key in file.keys()}  # noqa: SIM118
    try:
        kernel = tensors["conv1.weight"]  # [64, 3, 7, 7]
        if normalised:
            mean, std = (np.float32(v)[:, None, None] for v in IMAGENET)
            tensors["bn1.running_mean"] += (kernel * mean / std).sum((1, 2, 3))
            kernel = kernel / std
        tensors["conv1.weight"] = kernel.sum(1, keepdims=True)
        for layer in model.layers:
            name = layer.name.replace("downsample_", "downsample.")
            name = ".".join(name.split("_", 2)) if name.startswith("layer") else name
            if isinstance(layer, layers.Conv2D):
                layer.set_weights([tensors[f"{name}.weight"].transpose(2, 3, 1, 0)])
            elif isinstance(layer, layers.BatchNormalization):
                parts = ("weight", "bias", "running_mean", "running_var")
                layer.set_weights([tensors[f"{name}.{part}"] for part in parts])
    except (KeyError, ValueError) as error:
        raise InvalidModel(f"{Path(path).name} is no ResNet50 in torchvision's names: {error}") from error


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, standard deviation


def load(folder):
    """Return the forward function of a model folder, as `backends.onnx.load`. Raises InvalidModel."""
    try:
        model = keras.saving.load_model(folder / WEIGHTS, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError) as error:
        raise InvalidModel(f"{folder.name}/{WEIGHTS} cannot be loaded: {error}") from error
    both = _logits_and_features(model)

    def forward(pixels):
        logits, feature_map = map(np.asarray, both.predict_on_batch(_channels_last(pixels)))
        return logits, feature_map.transpose(0, 3, 1, 2)

    return forward


def _logits_and_features(model):
    return keras.Model(model.input, [model.get_layer(name).output for name in OUTPUTS])


def _channels_last(pixels):
    return pixels.reshape(-1, INPUT_SIZE, INPUT_SIZE, 1)  # with one channel the bytes are the same


def _round_to_half(model):
    """Give every kernel a value that float16 can hold, so that half the bytes store it exactly.

    Exporters multiply a convolution's kernel by the scale of the BatchNorm behind it. So that this
    product too fits float16, the scale is first made a power of two and the rest moved into the
    kernel, which leaves the function unchanged.
    """
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            # The layers' names follow torchvision: conv1 and bn1, downsample_0 and downsample_1.
            norm = model.get_layer(layer.name.replace("conv", "bn").replace("sample_0", "sample_1"))
            gamma, beta, mean, variance = norm.get_weights()
            deviation = np.sqrt(variance + norm.epsilon)
            scale = np.maximum(np.abs(gamma) / deviation, 1e-12)
            power = np.exp2(np.floor(np.log2(scale)))
            rest = scale / power  # in 1..2
            norm.set_weights([np.sign(gamma) * power * deviation, beta, mean * rest, variance])
            layer.set_weights([_as_half(layer.get_weights()[0] * rest)])
        elif isinstance(layer, layers.Dense):
            kernel, bias = layer.get_weights()
            layer.set_weights([_as_half(kernel), bias])


def _head(model, half):
    """The dense layers as `fracture_lib.maps.Head`, kernels of float16 with `half`."""
    hidden, logits = (layer.get_weights() for layer in model.layers if isinstance(layer, layers.Dense))
    slopes = [layer.negative_slope for layer in model.layers if isinstance(layer, layers.LeakyReLU)]
    arrays = [*hidden, *logits, np.float32([slopes[-1] if slopes else 0])]
    return Head(*(a.astype(np.float16) if half and a.ndim == 2 else a for a in arrays))


def _as_half(kernel):
    return kernel.astype(np.float16).astype(np.float32)


def _compress(path):
    """Rewrite a .keras file with its weights shuffled and deflated, which Keras reads unaided.

    Float32 values that were rounded to float16 end in zero bits, so this stores them in about half
    the bytes while the file stays plain float32 for every reader.
    """
    import h5py

    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(scratch)
        weights = Path(scratch) / "model.weights.h5"
        packed = weights.with_suffix(".packed")
        with h5py.File(weights) as source, h5py.File(packed, "w") as target:
            target.attrs.update(source.attrs)

            def copy(name, item):
                if isinstance(item, h5py.Group):
                    new = target.require_group(name)
                else:
                    options = PACKED if item.shape else {}  # a scalar cannot be packed
                    new = target.create_dataset(name, data=item[()], **options)
                new.attrs.update(item.attrs)

            source.visititems(copy)
        packed.replace(weights)
        with zipfile.ZipFile(path, "w") as archive:
            for member in ("metadata.json", "config.json", "model.weights.h5"):
                archive.write(Path(scratch) / member, member)


def _export_onnx(model, path, half):
    """Write the graph that `fracture_lib.backends.onnx` describes: channels first, two outputs."""
    pixels = keras.Input((1, INPUT_SIZE, INPUT_SIZE), name=INPUT)
    logits, feature_map = _logits_and_features(model)(layers.Reshape((INPUT_SIZE, INPUT_SIZE, 1))(pixels))
    graph = keras.Model(pixels, [logits, layers.Permute((3, 1, 2))(feature_map)])
    graph.predict_on_batch(np.zeros((1, 1, INPUT_SIZE, INPUT_SIZE), np.float32))  # builds it
    graph.export(path, format="onnx", verbose=False)
    finish_export(path, half)


# ---- training


class _Muon(keras.optimizers.Muon):
    """Muon for convolution kernels and AdamW for the rest; Keras's own takes matrices only.

    A kernel [h, w, in, out] is the matrix [h * w * in, out], the transpose of PyTorch's. The same
    steps as `fracture_lib.backends.pytorch.Muon` beside torch.optim.AdamW.
    """

    def _should_use_adamw(self, variable):
        return len(variable.shape) != 4

    def zeropower_via_newtonschulz5(self, x, steps):
        matrix = keras.ops.reshape(x, (-1, x.shape[-1]))
        return keras.ops.reshape(super().zeropower_via_newtonschulz5(matrix, steps), x.shape)


class Learner:
    """One network in training; see `fracture_lib.training` for the protocol."""

    def __init__(self, recipe, seed, pretrained=None):
        keras.utils.set_random_seed(seed)
        self.model = _build(recipe.architecture)
        self.trunk, trunk_end = None, self.model.input
        if "tuned_stages" in recipe.architecture:
            load_pretrained(self.model, pretrained)
            trunk_end = _trunk_end(self.model, recipe.architecture["tuned_stages"])
            self.trunk = keras.Model(self.model.input, trunk_end)
        self.tail = keras.Model(trunk_end, self.model.get_layer("logits").output)
        self.muon = recipe.muon
        clipped = {"global_clipnorm": recipe.clip_norm}
        if self.muon:
            optimizer = _Muon(
                weight_decay=recipe.weight_decay,
                adam_weight_decay=recipe.weight_decay / self.muon,  # Keras multiplies it by Muon's rate
                adam_lr_ratio=1 / self.muon,
                rms_rate=None,  # no further scale
                name="muon",
                **clipped,
            )
        else:
            optimizer = keras.optimizers.AdamW(weight_decay=recipe.weight_decay, **clipped)
        self.tail.compile(
            optimizer,
            keras.losses.CategoricalCrossentropy(from_logits=True),
            jit_compile=False,  # on a CPU the compiled step is the slower one
        )
        self.tail.optimizer.build(self.tail.trainable_variables)

    def features(self, pixels):
        if self.trunk is None:
            return pixels
        return np.asarray(self.trunk.predict_on_batch(_channels_last(pixels)))

    def _tail_input(self, features):
        return _channels_last(features) if self.trunk is None else features

    def step(self, features, targets, learning_rate, seed):
        for variable in self._dropout_seeds():
            variable.assign([seed, 0])
        self.tail.optimizer.learning_rate = learning_rate * (self.muon or 1)
        return float(self.tail.train_on_batch(self._tail_input(features), targets))

    def logits(self, features):
        return np.asarray(self.tail.predict_on_batch(self._tail_input(features)))

    def get_weights(self):
        return self.tail.get_weights()

    def set_weights(self, arrays):
        self.tail.set_weights(arrays)

    def get_optimizer(self):
        return [np.asarray(keras.ops.convert_to_numpy(v)) for v in self.tail.optimizer.variables]

    def set_optimizer(self, arrays):
        for variable, array in zip(self.tail.optimizer.variables, arrays, strict=True):
            variable.assign(array)

    def _dropout_seeds(self):
        return [v for v in self.tail.non_trainable_variables if v.name == "seed_generator_state"]

    def save(self, folder):
        """Write model.keras and model.onnx of the current weights, large models in half precision."""
        half = self.model.count_params() > HALF_ABOVE
        if half:
            _round_to_half(self.model)
        self.model.save(folder / WEIGHTS)
        if half:
            _compress(folder / WEIGHTS)
        write_head(folder, _head(self.model, half))
        _export_onnx(self.model, folder / "model.onnx", half)
