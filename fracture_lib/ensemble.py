"""The models together: the weighted mean of their calibrated probabilities, calibrated again.

Weights and temperature are fitted on the films that every member left out, from the logits that
`training` writes beside each model. `measure_ensemble` scores each of these films with weights and
temperatures fitted on other groups; `load("ensemble")` serves those fitted on all of them.
"""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fracture_lib.config import read_config, read_json, write_json
from fracture_lib.errors import InvalidData, InvalidModel
from fracture_lib.evaluation import full_report
from fracture_lib.metrics import (
    fit_temperature,
    fit_weights,
    paired_difference,
    pool,
    pool_across_groups,
    softmax,
)
from fracture_lib.registry import ENSEMBLE

__all__ = ["measure_ensemble", "write_out_of_fold"]

OUT_OF_FOLD = "out_of_fold.safetensors"


def write_out_of_fold(folder, logits, films, indices):
    """Keep logits float32 [M, 10] of the films `indices`, each from the fit that did not see it."""
    arrays = {
        "logits": logits.astype(np.float32),
        "labels": films.labels[indices],
        "groups": films.groups[indices],
        "indices": indices,  # in the order of the films' paths
    }
    save_file(arrays, folder / OUT_OF_FOLD, metadata={"fingerprint": films.fingerprint})


def measure_ensemble(folders, out):
    """Measure the models in `folders` together; write and return the folder `out`'s evaluation.json.

    It is the `full_report` with "members", their "weights" and the "temperature" to serve, and
    "minus_equal_weights", what fitting the weights adds to accuracy and negative log-likelihood.

    Raises InvalidModel where a folder lacks its out-of-fold logits, InvalidData where the members
    did not hold out the very same films.
    """
    folders, out = [Path(folder) for folder in folders], Path(out)
    held_out = [_read(folder) for folder in folders]
    first = held_out[0]
    for folder, other in zip(folders, held_out, strict=True):
        if other["fingerprint"] != first["fingerprint"] or any(
            not np.array_equal(first[key], other[key]) for key in ("labels", "groups", "indices")
        ):
            raise InvalidData(
                f"{folder.name} and {folders[0].name} held out other films: train them with the same "
                "data and folds."
            )
    labels, groups = first["labels"], first["groups"]
    logits = [o["logits"] for o in held_out]
    probabilities = pool_across_groups(logits, labels, groups)
    configs = [read_config(folder) for folder in folders]
    # Served members are calibrated by their one temperature, so what is served is fitted on that.
    served = [softmax(some, config["temperature"]) for some, config in zip(logits, configs, strict=True)]
    names = [config["model_name"] for config in configs]
    weights = fit_weights(served, labels).round(4).tolist()
    equal = pool_across_groups(logits, labels, groups, weigh=lambda *_: None)
    member = read_json(folders[0] / "evaluation.json")
    evaluation = {
        "model": ENSEMBLE,
        "members": names,
        "weights": dict(zip(names, weights, strict=True)),
        "temperature": round(fit_temperature(pool(served, weights), labels), 4),
        "protocol": member["protocol"].partition(";")[0]
        + "; the members' mean, weighted and calibrated as fitted on the other groups",
        "data": member["data"],
        **full_report(probabilities, labels, groups),
        "minus_equal_weights": paired_difference(probabilities, equal, labels, groups),
        "test": None,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "evaluation.json", evaluation)
    return evaluation


def _read(folder):
    try:
        with safe_open(folder / OUT_OF_FOLD, "np") as file:
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
            return {**arrays, "fingerprint": file.metadata()["fingerprint"]}
    except (OSError, SafetensorError) as error:
        raise InvalidModel(f"{folder.name} has no readable {OUT_OF_FOLD}: train it again.") from error
