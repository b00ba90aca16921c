"""Score a trained model on a folder of films that it has not seen."""

import numpy as np

from fracture_lib.classifier import load
from fracture_lib.data import load_films, pixels_of
from fracture_lib.metrics import report

__all__ = ["evaluate", "provenance"]


def evaluate(model, data, split=None, runtime="onnx"):
    """Return the report of `model` (as `load` takes it) on the films in the folder `data`.

    The dict is JSON-ready: that of `metrics.report`, with the model, its source, and the data's
    split, grouping and fingerprint. Raises FractureError of the kinds of `load` and `load_films`.
    """
    classifier = load(model, runtime)
    films = load_films(data, split)
    pixels = pixels_of(films)
    probabilities = np.concatenate(
        [classifier.probabilities(pixels[i : i + 64]) for i in range(0, len(pixels), 64)]
    )
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
    }


def provenance(films):
    """What a report says of the films behind it."""
    return {
        "data": {
            "split": films.split,
            "films": len(films.labels),
            "grouped_by": films.grouped_by,
            "fingerprint": films.fingerprint,
        }
    }
