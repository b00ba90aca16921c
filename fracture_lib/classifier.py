"""`load` gives a Classifier; `Classifier.predict` answers for one film. The library's front door."""

from dataclasses import dataclass
from importlib import import_module
from time import perf_counter

from fracture_lib.config import read_config, read_json
from fracture_lib.errors import FractureError
from fracture_lib.hub import BUNDLE, ModelSource, locate
from fracture_lib.labels import CLASSES, ID2LABEL
from fracture_lib.metrics import pool, softmax
from fracture_lib.preprocess import preprocess
from fracture_lib.registry import ENSEMBLE, MODELS

__all__ = ["Classifier", "Prediction", "Score", "load"]


@dataclass(frozen=True)
class Score:
    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The answer of one model to one film."""

    model: str
    scores: tuple[Score, ...]  # the top k, most probable first
    source: ModelSource  # where the weights came from
    runtime: str
    milliseconds: float  # of the network alone, without reading the film

    def to_dict(self):
        """The same as plain JSON-ready values."""
        return {
            "model": self.model,
            "scores": [{"label": s.label, "probability": s.probability} for s in self.scores],
            "source": str(self.source),
            "runtime": self.runtime,
            "milliseconds": round(self.milliseconds, 2),
        }


class Classifier:
    """A loaded model. Build one with `load` and keep it: loading costs far more than predicting."""

    def __init__(self, name, source, runtime, logits, temperature, evaluation):
        self.name = name
        self.source = source
        self.runtime = runtime
        self.evaluation = evaluation  # the content of evaluation.json
        self._logits = logits
        self._temperature = temperature

    def probabilities(self, pixels):
        """float32 [N, 1, 128, 128] in 0..1, as `preprocess` makes -> calibrated float [N, 10]."""
        return softmax(self._logits(pixels).astype("float64"), self._temperature)

    def predict(self, image, top_k=3):
        """Return the Prediction for one film: a path, bytes, Pillow image or array.

        Raises InvalidImage where `image` is no readable film, FractureError where `top_k` is not
        in 1..10.
        """
        check_top_k(top_k)
        pixels = preprocess(image)[None, None]
        start = perf_counter()
        probabilities = self.probabilities(pixels)[0]
        milliseconds = 1000 * (perf_counter() - start)
        order = probabilities.argsort(kind="stable")[::-1][:top_k]
        scores = tuple(Score(ID2LABEL[int(i)], float(probabilities[i])) for i in order)
        return Prediction(self.name, scores, self.source, self.runtime, milliseconds)


def check_top_k(top_k):
    if not isinstance(top_k, int) or not 1 <= top_k <= len(CLASSES):
        raise FractureError(f"top_k is {top_k}: give a whole number from 1 to {len(CLASSES)}.")


def load(model, runtime="onnx"):
    """Load a model and return its Classifier.

    `model` is a name ("pytorch-cnn", "tensorflow-cnn", "resnet50", or "ensemble" for the mean of the
    three), a folder, or a Hub id "owner/name[@revision]". `runtime` is "onnx" (ONNX Runtime, imports no
    framework) or "native" (the framework that trained it).

    Raises ModelUnavailable, InvalidModel, UnknownLabel; all are FractureError.
    """
    if runtime not in ("onnx", "native"):
        raise FractureError(f'The runtime "{runtime}" is unknown: use onnx or native.')
    if model == ENSEMBLE:
        return _load_ensemble(runtime)
    source = locate(model, runtime)
    config = read_config(source.folder)
    name = config["model_name"]
    if name not in MODELS:
        raise FractureError(f'The config names the model "{name}": known are {", ".join(MODELS)}.')
    backend = "onnx" if runtime == "onnx" else MODELS[name].backend
    logits = import_module(f"fracture_lib.backends.{backend}").load(source.folder)
    evaluation = read_json(source.folder / "evaluation.json")
    return Classifier(name, source, runtime, logits, config["temperature"], evaluation)


def _load_ensemble(runtime):
    """The mean of the models' calibrated probabilities as one more Classifier."""
    folder = BUNDLE / ENSEMBLE
    evaluation = read_json(folder / "evaluation.json")
    members = [load(name, runtime) for name in evaluation["members"]]

    def logits(pixels):
        return pool([member.probabilities(pixels) for member in members])

    bundled = all(member.source.kind == "bundle" for member in members)
    note = "" if bundled else "; ".join(f"{member.name}: {member.source}" for member in members)
    source = ModelSource(folder, "bundle", note=note)
    return Classifier(ENSEMBLE, source, runtime, logits, evaluation["temperature"], evaluation)
