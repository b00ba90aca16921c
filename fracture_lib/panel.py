"""All models at one table: a film is read once, judged once, and shown to each model once.

The page, its endpoints and the batch all ask a Panel.
"""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from traceback import clear_frames

import numpy as np
from PIL import Image

from fracture_lib.classifier import Ensemble, Prediction, load
from fracture_lib.errors import FractureError, InvalidImage, ModelUnavailable
from fracture_lib.hub import BUNDLE
from fracture_lib.preprocess import INPUT_SIZE, placement, preprocess, read_film
from fracture_lib.refusal import Verdict, judge
from fracture_lib.registry import ENSEMBLE, MODELS

__all__ = ["EVERYONE", "Panel", "Result", "in_words"]

EVERYONE = (*MODELS, ENSEMBLE)
GATEKEEPER = "resnet50"
PICTURE_SIDE = 640  # pixels of the picture that is kept to show; the models saw 128

# Calibrated probabilities of the first answer. Above one half it is more likely right than wrong.
CONFIDENT, GUESSING = 0.5, 0.25


@dataclass(frozen=True)
class Result:
    """What the panel says of one film. Holds no file and no tag of it, only a small picture."""

    name: str  # of the file, without folders
    picture: Image.Image  # the film as read, 8-bit grey, at most PICTURE_SIDE a side
    pixels: np.ndarray  # float32 [128, 128], what the models saw
    place: tuple[slice, slice]  # the part of `pixels` that the film fills
    notices: tuple[str, ...]
    verdict: Verdict
    predictions: dict[str, Prediction]  # of all ten classes each; empty where the film was refused
    failures: dict[str, str]  # models that could not answer, and why

    def to_dict(self, top_k):
        """The same as plain JSON-ready values, without pictures."""
        return {
            "film": self.name,
            "refused": not self.predictions and self.verdict.refused,
            "notices": [*self.notices, *filter(None, [self.verdict.sentence])],
            "predictions": [p.to_dict(top_k) for p in self.predictions.values()],
            "failures": self.failures,
            "in_words": in_words(self),
        }


class Panel:
    """Loads each model when it is first asked for and keeps it. Safe to share between threads."""

    def __init__(self, runtime="onnx"):
        self.runtime = runtime
        self.ready = False  # whether `load_all` has been through
        self._loaded = {}
        self._lock = Lock()

    def classifier(self, name):
        """Return the Classifier or Ensemble `name`, or whatever else `load` takes. Raises FractureError."""
        with self._lock:
            return self._load(name)

    def gatekeeper(self):
        """The bundled resnet50, whose features tell what is no film: the panel's own, where that is it."""
        with self._lock:
            with suppress(FractureError):
                member = self._load(GATEKEEPER)
                if member.source.kind == "bundle":
                    return member
            return self._load(BUNDLE / GATEKEEPER)

    def _load(self, name):
        if name not in self._loaded:
            if name == ENSEMBLE:
                self._loaded[name] = Ensemble({member: self._load(member) for member in MODELS})
            else:
                self._loaded[name] = load(name, self.runtime)
        return self._loaded[name]

    def load_all(self):
        """Load every model that can be loaded; one that cannot says so when it is asked.

        Each is asked once, about a picture of nothing, as a first answer takes longer than later ones.
        """
        with suppress(FractureError):
            self.ask(np.eye(INPUT_SIZE), name="nothing", anyway=True)
        self.ready = True

    def ask(self, source, names=EVERYONE, name=None, anyway=False):
        """Return the Result of the models `names` on the film in `source`, as `read_film` takes it.

        `name` is shown for the film, by default that of its path. A picture that does not look like
        a bone X-ray is refused, so nobody is asked, unless `anyway`. A model that cannot be loaded
        is named among the failures and the others answer; where it is the one that looks what is no
        X-ray, a notice says that nobody did. Raises InvalidImage, also where memory runs out.
        """
        try:
            film = read_film(source)
            shades = np.empty(film.pixels.shape, np.uint8)
            np.multiply(255, film.pixels, out=shades, casting="unsafe")  # no copy of a large film in floats
            picture = Image.fromarray(shades)
            picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
            pixels = preprocess(film)
        except (InvalidImage, MemoryError) as error:
            _let_go(error)
            if isinstance(error, InvalidImage):
                raise
            raise InvalidImage("The film needs more memory than there is: scale it down first.") from error
        verdict, seen, unchecked = self._judge(film, pixels)
        asked = () if verdict.refused and not anyway else names
        predictions, failures = self._predictions(pixels, asked, seen)
        return Result(
            name or Path(source).name,
            picture,
            pixels,
            placement(film.pixels.shape),
            (*film.notices, *unchecked),
            verdict,
            predictions,
            failures,
        )

    def _judge(self, film, pixels):
        """(Verdict, the gatekeeper's Answer by Classifier, notices); nothing is refused unseen."""
        try:
            gatekeeper = self.gatekeeper()
            answer = gatekeeper.answer(pixels[None, None])
            return judge(film, answer.features[0]), {gatekeeper: answer}, ()
        except FractureError as error:
            return Verdict(False, "", 0, 0), {}, (f"Nothing checked whether this is an X-ray: {error}",)

    def _predictions(self, pixels, names, given):
        """`given` maps classifiers to Answers that there are already."""
        answers, failures = {}, {}
        for name in MODELS if ENSEMBLE in names else names:
            try:
                classifier = self.classifier(name)
                answers[name] = given.get(classifier) or classifier.answer(pixels[None, None])
            except FractureError as error:
                failures[name] = str(error)
        if ENSEMBLE in names:
            try:
                if failures:
                    raise ModelUnavailable(f"Needs all of its members; without {', '.join(failures)}.")
                answers[ENSEMBLE] = self.classifier(ENSEMBLE).combine(answers)
            except FractureError as error:
                failures[ENSEMBLE] = str(error)
        return {n: self.classifier(n).prediction(answers[n]) for n in names if n in answers}, failures


def _let_go(error):
    """Free the films in the frames that an error came through, as servers hold errors for a while."""
    while error:
        clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def in_words(result):
    """One or two plain sentences about how sure and how united the models are."""
    if not result.predictions:
        return ""
    lead = result.predictions.get(ENSEMBLE) or next(iter(result.predictions.values()))
    first = lead.scores[0]
    right = f"such answers are right {first.probability:.0%} of the time"
    if first.probability >= CONFIDENT:
        sure = f"Fairly confident of {first.label}: {right}."
    elif first.probability >= GUESSING:
        sure = f"Unsure: {first.label} leads, but {right}."
    else:
        sure = f"Guessing: {first.label} comes first, but {right}."
    said = [p.scores[0].label for name, p in result.predictions.items() if name != ENSEMBLE]
    if len(said) < 2:
        return sure
    label, votes = Counter(said).most_common(1)[0]
    if votes == len(said):
        return f"All {len(said)} models say {label}. {sure}"
    if votes == 1:
        return f"The models disagree. {sure}"
    return f"{votes} of {len(said)} models say {label}. {sure}"
