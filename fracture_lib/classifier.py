"""`load` gives a Classifier; `Classifier.predict` answers for one film. The library's front door."""

from dataclasses import dataclass, field
from importlib import import_module
from time import perf_counter

import numpy as np

from fracture_lib.config import read_config, read_evaluation
from fracture_lib.errors import FractureError
from fracture_lib.hub import BUNDLE, ModelSource, locate
from fracture_lib.labels import CLASSES, ID2LABEL
from fracture_lib.maps import check_head, evidence, mix_evidence, read_head
from fracture_lib.metrics import pool, softmax
from fracture_lib.preprocess import preprocess
from fracture_lib.registry import ENSEMBLE, MODELS

__all__ = ["Answer", "Classifier", "Ensemble", "Prediction", "Score", "check_top_k", "load"]


@dataclass(frozen=True)
class Score:
    label: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """What a model computes for N films in one forward pass."""

    probabilities: np.ndarray  # float [N, 10], calibrated
    evidence: np.ndarray  # float32 [N, 10, h, w], see fracture_lib.maps.evidence
    milliseconds: float  # of the forward pass
    features: np.ndarray | None = None  # float32 [N, C, h, w], the last feature map; an ensemble has none


@dataclass(frozen=True)
class Prediction:
    """The answer of one model to one film."""

    model: str
    scores: tuple[Score, ...]  # the top k, most probable first
    source: ModelSource  # where the weights came from
    runtime: str
    milliseconds: float  # of the network alone, without reading the film
    # float32 [10, h, w]: what each place of the padded film adds to a class's log-probability
    evidence: np.ndarray = field(compare=False, repr=False)

    def to_dict(self, top_k=None):
        """The same as plain JSON-ready values, at most `top_k` scores and no maps."""
        return {
            "model": self.model,
            "scores": [{"label": s.label, "probability": s.probability} for s in self.scores[:top_k]],
            "source": str(self.source),
            "runtime": self.runtime,
            "milliseconds": round(self.milliseconds, 2),
        }


class _Predictor:
    """What a model and the ensemble have in common: `predict` in terms of `answer`."""

    def probabilities(self, pixels):
        """float32 [N, 1, 128, 128] in 0..1, as `preprocess` makes -> calibrated float [N, 10]."""
        return self.answer(pixels).probabilities

    def predict(self, image, top_k=3):
        """Return the Prediction for one film: a Film, path, bytes, Pillow image or array.

        Raises InvalidImage where `image` is no readable film, FractureError where `top_k` is not
        in 1..10.
        """
        check_top_k(top_k)
        return self.prediction(self.answer(preprocess(image)[None, None]), top_k)

    def prediction(self, answer, top_k=None):
        """The first film of an Answer -> Prediction with the `top_k` most probable classes."""
        probabilities = answer.probabilities[0]
        order = probabilities.argsort(kind="stable")[::-1][:top_k]
        scores = tuple(Score(ID2LABEL[int(i)], float(probabilities[i])) for i in order)
        return Prediction(
            self.name, scores, self.source, self.runtime, answer.milliseconds, answer.evidence[0]
        )


class Classifier(_Predictor):
    """A loaded model. Build one with `load` and keep it: loading costs far more than predicting."""

    def __init__(self, name, source, runtime, forward, head, temperature, evaluation):
        self.name = name
        self.source = source
        self.runtime = runtime
        self.evaluation = evaluation  # the content of evaluation.json
        self._forward = forward
        self._head = head
        self._temperature = temperature

    def answer(self, pixels):
        """float32 [N, 1, 128, 128] in 0..1, as `preprocess` makes -> Answer."""
        start = perf_counter()
        logits, features = self._forward(pixels)
        milliseconds = 1000 * (perf_counter() - start)
        probabilities = softmax(logits.astype("float64"), self._temperature)
        maps = evidence(features, self._head, probabilities, self._temperature)
        return Answer(probabilities, maps, milliseconds, features)

    @property
    def size(self):
        """Bytes of the graph that serves."""
        return (self.source.folder / "model.onnx").stat().st_size


class Ensemble(_Predictor):
    """The weighted mean of several Classifiers' probabilities, calibrated once more."""

    def __init__(self, members):
        """`members` is a dict of name -> Classifier, the very models that were measured together."""
        folder = BUNDLE / ENSEMBLE
        self.name = ENSEMBLE
        self.members = members
        self.evaluation = read_evaluation(folder)
        self.runtime = next(iter(members.values())).runtime
        bundled = all(member.source.kind == "bundle" for member in members.values())
        note = "" if bundled else "; ".join(f"{name}: {m.source}" for name, m in members.items())
        self.source = ModelSource(folder, "bundle", note=note)

    def answer(self, pixels):
        """As `Classifier.answer`; every member runs once."""
        return self.combine({name: member.answer(pixels) for name, member in self.members.items()})

    def combine(self, answers):
        """Members' Answers by name -> the ensemble's, at no further forward pass."""
        weights = [self.evaluation["weights"][name] for name in answers]
        temperature = self.evaluation["temperature"]
        members = [answer.probabilities for answer in answers.values()]
        evidences = [answer.evidence for answer in answers.values()]
        probabilities = softmax(pool(members, weights), temperature)
        return Answer(
            probabilities,
            mix_evidence(evidences, members, weights, probabilities, temperature),
            sum(answer.milliseconds for answer in answers.values()),
        )

    @property
    def size(self):
        return sum(member.size for member in self.members.values())


def check_top_k(top_k):
    if not isinstance(top_k, int) or not 1 <= top_k <= len(CLASSES):
        raise FractureError(f"top_k is {top_k}: give a whole number from 1 to {len(CLASSES)}.")


def load(model, runtime="onnx"):
    """Load a model and return its Classifier, or the Ensemble.

    `model` is a name ("pytorch-cnn", "tensorflow-cnn", "resnet50", or "ensemble" for the mean of the
    three), a folder, or a Hub id "owner/name[@revision]". `runtime` is "onnx" (ONNX Runtime, imports no
    framework) or "native" (the framework that trained it).

    Raises ModelUnavailable, InvalidModel, UnknownLabel; all are FractureError.
    """
    if runtime not in ("onnx", "native"):
        raise FractureError(f'The runtime "{runtime}" is unknown: use onnx or native.')
    if model == ENSEMBLE:
        return Ensemble({name: load(name, runtime) for name in MODELS})
    source = locate(model, runtime)
    config = read_config(source.folder)
    name = config["model_name"]
    if name not in MODELS:
        raise FractureError(f'The config names the model "{name}": known are {", ".join(MODELS)}.')
    backend = "onnx" if runtime == "onnx" else MODELS[name].backend
    forward = import_module(f"fracture_lib.backends.{backend}").load(source.folder)
    evaluation = read_evaluation(source.folder)
    head = read_head(source.folder)
    check_head(forward, head, source.folder)
    return Classifier(name, source, runtime, forward, head, config["temperature"], evaluation)
