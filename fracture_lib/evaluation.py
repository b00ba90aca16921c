"""Score a trained model on a folder of films; what every report of a measurement holds."""

import numpy as np

from fracture_lib.classifier import load
from fracture_lib.data import load_films, near_copies, pixels_of
from fracture_lib.metrics import calibrate_across_groups, conformal_sets, reliability, report, selective

__all__ = ["evaluate", "full_report", "out_of_fold_report", "provenance"]


def evaluate(model, data, split=None, runtime="onnx", apart_from=None):
    """Return the report of `model` (as `load` takes it) on the films in the folder `data`.

    The dict is JSON-ready: that of `metrics.report`, with the model, its source, and the data's
    split, grouping and fingerprint. With `apart_from`, the name of the split that was trained on,
    "clean" holds a second report, on the films that have no near copy there.

    Raises FractureError of the kinds of `load` and `load_films`.
    """
    classifier = load(model, runtime)
    films = load_films(data, split)
    clean = {}
    if apart_from:
        seen = load_films(data, apart_from)
        group = near_copies([*films.paths, *seen.paths])
        keep = ~np.isin(group[: len(films.paths)], group[len(films.paths) :])
    pixels = pixels_of(films)
    probabilities = np.concatenate(
        [classifier.probabilities(pixels[i : i + 64]) for i in range(0, len(pixels), 64)]
    )
    if apart_from and keep.any():
        clean = {"clean": report(probabilities[keep], films.labels[keep], films.groups[keep])}
    protocol = f"the given model on the films of {films.split or 'the whole folder'}"
    if films.fingerprint == classifier.evaluation["data"]["fingerprint"]:
        protocol += ", the very films it was trained on: memory, not accuracy"
    return {
        "model": classifier.name,
        "source": str(classifier.source),
        "runtime": runtime,
        "protocol": protocol,
        **provenance(films),
        **report(probabilities, films.labels, films.groups),
        **clean,
    }


def out_of_fold_report(logits, labels, groups):
    """Return the `full_report` on logits [N, 10] of films that their fit did not see.

    Each film's temperature is fitted on the other groups' films.
    """
    return full_report(calibrate_across_groups(logits, labels, groups), labels, groups)


def full_report(probabilities, labels, groups):
    """Return the JSON-ready report on probabilities [N, 10] that were not fitted on their own films.

    That of `metrics.report`, with "reliability", "selective" and "conformal", whose thresholds are
    fitted on other groups than those they are measured on.
    """
    return {
        **report(probabilities, labels, groups),
        "reliability": reliability(probabilities, labels, groups),
        "selective": selective(probabilities, labels, groups),
        "conformal": conformal_sets(probabilities, labels, groups),
    }


def provenance(films):
    """What a report says of the films behind it."""
    return {
        "data": {
            "hub": films.hub,
            "split": films.split,
            "films": len(films.labels),
            "grouped_by": films.grouped_by,
            "fingerprint": films.fingerprint,
        }
    }
