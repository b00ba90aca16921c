"""What does not look like a bone X-ray: out-of-distribution detection, with a reason in words.

A DICOM file may say what it is, and colour is plain to see. Everything else is judged by its distance
from the films that the models know: one minus the cosine similarity to the fifth-nearest of them in
ResNet50's pooled features, which costs no pass of its own. Source: deep nearest neighbours (Sun et al.,
https://arxiv.org/abs/2204.06507). Only films fit it; other pictures only ever measure it.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from fracture_lib.config import read_json, write_json
from fracture_lib.errors import InvalidData, InvalidImage, InvalidModel
from fracture_lib.hub import BUNDLE
from fracture_lib.metrics import mean_with_interval, parts, wilson
from fracture_lib.preprocess import preprocess, read_film

__all__ = ["Verdict", "fit", "judge"]

FOLDER = BUNDLE / "refusal"
KNOWN = "known_films.safetensors"
NEIGHBOUR = 5
FALSE_REFUSAL = {"distance": 0.025, "colour": 0.005}  # the share of known films beyond each threshold
# DICOM's terms for projection radiographs, and for what may be one.
RADIOGRAPHS = {None, "CR", "DX", "DG", "IO", "OT", "PX", "RF", "RG", "XA"}


@dataclass(frozen=True)
class Verdict:
    refused: bool
    reason: str  # a sentence; empty where nothing speaks against the picture
    distance: float  # 0..1, from the known films
    threshold: float  # of `distance`

    @property
    def sentence(self):
        """What to tell people; empty where nothing speaks against the picture."""
        return f"This does not look like a bone X-ray. {self.reason}" if self.refused else ""


def judge(film, features):
    """Return the Verdict on a Film and its feature map float32 [2048, h, w] of the bundled resnet50.

    Raises InvalidModel where what it is held against cannot be read.
    """
    films, limits = _known()
    distance = float(_distances(_pooled(features[None]), films)[0])
    reason = ""
    if film.modality not in RADIOGRAPHS:
        reason = f"The DICOM file says that it is {film.modality}, not a radiograph."
    elif film.colour > limits["colour"]:
        reason = "It is in colour, and X-ray films are grey."
    elif distance > limits["distance"]:
        reason = "Its looks are far from those of the films that the models know."
    return Verdict(bool(reason), reason, distance, limits["distance"])


@cache
def _known():
    try:
        limits = read_json(FOLDER / "evaluation.json")["thresholds"]
        films = load_file(FOLDER / KNOWN)["films"].astype(np.float32)
        return films, {name: float(limits[name]) for name in FALSE_REFUSAL}
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise InvalidModel(f"The folder {FOLDER.name} of the bundle is damaged: get it again.") from error


def _pooled(features):
    """Feature maps [N, C, h, w] -> unit vectors [N, C]."""
    pooled = features.mean((2, 3))
    return pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)


def _distances(vectors, films):
    """Unit vectors [N, C] and those of the films they are held against [M, C] -> distances [N]."""
    return 1 - np.sort(vectors @ films.T, axis=1)[:, -min(NEIGHBOUR, len(films))]


def fit(films, others, features, folder=FOLDER):
    """Fit on labelled films, measure, write both into `folder`; return the report.

    `films` is a data.Films. `others` is a folder <kind>/<picture> of what is no bone X-ray. `features`
    maps model input float32 [1, 1, 128, 128] to a feature map [1, C, h, w]. A film's distance is
    measured to films of other groups, and the thresholds that it is held against are those of other
    groups, so the false refusal rate is not flattered by them.

    Raises InvalidData where `others` holds no pictures, InvalidImage where a film cannot be read.
    """
    kinds = {f.name: sorted(p for p in f.iterdir() if p.is_file()) for f in _folders(others)}
    vectors, colour = _look(films.paths, features)
    distance = np.empty(len(vectors))
    for here in parts(films.groups):
        distance[here] = _distances(vectors[here], vectors[~here])
    refused = np.empty(len(vectors))
    for here in parts(films.groups):
        limits = _thresholds(distance[~here], colour[~here])
        refused[here] = _beyond(distance[here], colour[here], limits)
    limits = _thresholds(distance, colour)
    detection = {}
    for kind, paths in kinds.items():
        seen, shade = _look(paths, features, skip_unreadable=True)
        found = int(_beyond(_distances(seen, vectors), shade, limits).sum())
        found += len(paths) - len(seen)  # the reader has refused those
        share = found / len(paths)
        interval = zip(("value", "low", "high"), (share, *wilson(share, len(paths))), strict=True)
        detection[kind] = {"n": len(paths), **{name: round(float(v), 4) for name, v in interval}}
    report = {
        "protocol": "fitted on films only; a film's distance and thresholds are those of other groups. The "
        "last stage of ResNet50 has seen these films, so new ones may be refused a little more often.",
        "thresholds": limits,
        "n": len(vectors),
        "groups": len(np.unique(films.groups)),
        "false_refusal": mean_with_interval(refused, films.groups),
        "detection": detection,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"films": vectors.astype(np.float16)}, folder / KNOWN)
    write_json(folder / "evaluation.json", report)
    return report


def _folders(root):
    found = [f for f in sorted(Path(root).iterdir()) if f.is_dir()] if Path(root).is_dir() else []
    if not found:
        raise InvalidData(f"There are no folders of pictures in {root}: expected <kind>/picture.png.")
    return found


def _look(paths, features, skip_unreadable=False):
    """Paths -> (unit vectors [N, C], colour [N]) of the pictures."""
    vectors, colour = [], []
    for path in paths:
        try:
            film = read_film(path)
        except InvalidImage:
            if skip_unreadable:
                continue
            raise
        vectors.append(_pooled(features(preprocess(film)[None, None]))[0])
        colour.append(film.colour)
    return np.array(vectors), np.array(colour)


def _thresholds(distance, colour):
    measured = {"distance": distance, "colour": colour}
    return {name: float(np.quantile(measured[name], 1 - rate)) for name, rate in FALSE_REFUSAL.items()}


def _beyond(distance, colour, limits):
    return (distance > limits["distance"]) | (colour > limits["colour"])
