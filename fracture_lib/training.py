"""Train a model: measure the recipe on held-out folds, then fit it once more on every film.

    films -> folds -> for each held-out fold: fit on the rest -> held-out logits -> evaluation
                   -> fit on all films -> the weights that are kept

A fit runs the recipe's epochs to their end and keeps the moving average of its weights: no film
chooses an epoch, so a held-out fold measures and does nothing else.

This module knows no framework. A backend's Learner(recipe, seed, pretrained) is one network with

    features(pixels)   what enters its trained layers: the output of a frozen trunk, or the pixels
    step(features, targets, learning_rate, seed)   one optimizer step on soft targets [B, 10] -> loss
    logits(features)   float32 [B, 10], dropout off
    get_weights(), set_weights(arrays), get_optimizer(), set_optimizer(arrays)
    save(folder)       its native weights and model.onnx

A fit repeats bit for bit on one CPU, and a killed one goes on from its last checkpoint to the very
same end: every epoch draws its randomness from (seed, epoch) alone.
"""

import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from fracture_lib.augment import augment
from fracture_lib.backends import onnx
from fracture_lib.cards import write_card
from fracture_lib.config import read_json, write_config, write_json
from fracture_lib.data import changed_pixels, folds, load_films
from fracture_lib.ensemble import write_out_of_fold
from fracture_lib.errors import FractureError, InvalidData
from fracture_lib.evaluation import out_of_fold_report, provenance
from fracture_lib.hub import pretrained_file
from fracture_lib.labels import CLASSES
from fracture_lib.metrics import fit_temperature, mean_with_interval, softmax
from fracture_lib.recipes import RECIPES
from fracture_lib.registry import MODELS
from fracture_lib.robustness import CHANGES

__all__ = ["fit_folds", "train"]

CHECKPOINT_EVERY = 5  # epochs


def train(
    name,
    data,
    out,
    split="Train",
    count=5,
    held_out=None,
    seed=0,
    pretrained=None,
    recipe=None,
    watch=None,
):
    """Train the model `name` on the films in the folder `data` and write it to the folder `out`.

    `out` becomes a model folder laid out as a Hub repository, with checkpoints in
    `out/checkpoints`: the same call after a kill goes on from there. `held_out` of the `count`
    folds are measured (all by default). `recipe` overrides the model's own. `pretrained` is a
    safetensors file or Hub id for models that start from weights. `watch(title, history)` is called at
    every checkpoint of a fit that holds films out. Returns evaluation.json's content.

    Raises InvalidData where the films or the checkpoints do not fit, ModelUnavailable where the
    pretrained weights cannot be had.
    """
    spec, recipe = MODELS[name], recipe or RECIPES[name]
    held_out = count if held_out is None else held_out
    if not 1 <= held_out <= count:
        raise FractureError(f"Cannot hold out {held_out} of {count} folds: give 1 to {count}.")
    films = load_films(data, split)
    start = pretrained_file(pretrained or spec.pretrained) if spec.pretrained else None
    out = Path(out)
    work = out / "checkpoints"
    work.mkdir(parents=True, exist_ok=True)
    run = {"model": name, "seed": seed, "folds": count, "recipe": asdict(recipe), **provenance(films)}
    _check_same_run(work / "run.json", run)

    pixels = changed_pixels(films, {"as is": lambda film: film, **CHANGES})
    fits = fit_folds(name, recipe, films, pixels, work, count, held_out, seed, start, watch)
    logits, measured = fits["logits"].pop("as is"), fits["indices"]
    labels, groups = films.labels[measured], films.groups[measured]
    temperature = fit_temperature(logits, labels)
    write_out_of_fold(out, logits, films, measured)
    stored_change = _save_and_compare(fits["learner"], out, pixels["as is"])
    write_config(
        out,
        model_name=name,
        architecture=recipe.architecture,
        temperature=round(temperature, 4),
        recipe=asdict(recipe),
        seed=seed,
    )
    evaluation = {
        "model": name,
        "protocol": f"out of fold: {held_out} of {count} grouped folds held out, each scored once by "
        "a fit on the other folds; the weights here are one more fit, on all films",
        **provenance(films),
        **out_of_fold_report(logits, labels, groups),
        "robustness": {
            change: mean_with_interval((some.argmax(axis=1) == labels).astype(float), groups)
            for change, some in fits["logits"].items()
        },
        "test": None,  # withheld; `evaluate --record` fills it
        "training": {
            "folds": count,
            "held_out": held_out,
            "pretrained": _origin(start),
            "stored_probability_change": stored_change,
            "history": fits["history"],
        },
    }
    write_json(out / "evaluation.json", evaluation)
    write_card(out)
    return evaluation


def _check_same_run(path, run):
    """Refuse to go on from the checkpoints of another run."""
    run = json.loads(json.dumps(run))  # tuples become lists, as in the file
    if path.exists() and (old := read_json(path)) != run:
        changed = ", ".join(key for key in run if old.get(key) != run[key])
        raise InvalidData(
            f"{path.parent} holds checkpoints of a run with another {changed}: choose another "
            "output folder or delete them."
        )
    write_json(path, run)


def _origin(start):
    """What a file of pretrained weights says of itself."""
    if start is None:
        return None
    with safe_open(start, "np") as file:
        return (file.metadata() or {}).get("source", start.name)


def _save_and_compare(learner, folder, pixels):
    """Save the model; return the largest change in probability, over the films given, that it made."""
    trained = softmax(_logits(learner, _features(learner, pixels)))
    learner.save(folder)
    forward = onnx.load(folder)
    exported = _in_chunks(lambda chunk: forward(chunk)[0], pixels)
    return float(np.abs(softmax(exported) - trained).max())


def fit_folds(name, recipe, films, pixels, work, count, held_out, seed, pretrained, watch=None):
    """Fit the model `name` on all but one of `count` folds, `held_out` times; then on all films.

    `pixels` is a dict of float32 [N, 1, 128, 128], the inputs of `films` by what was done to them
    first; it is trained on "as is" alone. The other arguments are those of `train`. Returns a dict:
    "learner" of the last fit; "indices" int64 [M], the films in the folds that were held out; "logits",
    a dict with the keys of `pixels` of float32 [M, 10], each film's from the fit that did not see it;
    "history", a list of dicts: epoch, mean loss of the folds' fits, accuracy on all M films by then.

    The folder `work` keeps checkpoints; the same call again goes on from there.
    """
    backend = import_module(f"fracture_lib.backends.{MODELS[name].backend}")
    fold = folds(films, count)
    everything = np.arange(len(fold))
    tests = [np.flatnonzero(fold == k) for k in range(held_out)]
    views, logits, histories = None, {change: [] for change in pixels}, []
    for k, test in enumerate([*tests, everything[:0]]):
        last = k == held_out  # holds nothing out
        learner = backend.Learner(recipe, seed, pretrained)
        if recipe.cached_views and views is None:  # a frozen trunk is the same in every fit
            views = _cached_views(learner, recipe, pixels["as is"], work / "views.npy", seed)
        history = _fit(
            learner,
            recipe,
            _sampler(recipe, pixels["as is"], views),
            films.labels,
            train=np.setdiff1d(everything, test),
            watched=None if last else (_features(learner, pixels["as is"][test]), films.labels[test]),
            checkpoint=work / ("all.safetensors" if last else f"fold-{k}.safetensors"),
            seed=seed,
            title="all films" if last else f"fold {k + 1} of {count}",
            watch=watch,
        )
        if not last:
            histories.append(history)
            for change, some in logits.items():
                some.append(_logits(learner, _features(learner, pixels[change][test])))
    indices = np.concatenate(tests)
    return {
        "learner": learner,
        "indices": indices,
        "logits": {change: np.concatenate(some) for change, some in logits.items()},
        "history": [
            {
                "epoch": rows[0]["epoch"],
                "loss": round(float(np.mean([row["loss"] for row in rows])), 4),
                "held_out_accuracy": round(sum(row["correct"] for row in rows) / len(indices), 4),
            }
            for rows in zip(*histories, strict=True)
        ],
    }


def _fit(learner, recipe, sample, labels, train, watched, checkpoint, seed, title, watch):
    """Train on the films `train`, leave the averaged weights in `learner`, return the history.

    `watched`, (features, labels) of the films held out or None, is scored for the curve alone.
    """
    smooth = recipe.label_smoothing
    targets = (1 - smooth) * np.eye(len(CLASSES)) + smooth / len(CLASSES)
    targets = targets.astype(np.float32)[labels]
    batch = min(recipe.batch_size, len(train))
    steps = len(train) // batch  # films left over wait for the next epoch's order

    average, history = learner.get_weights(), []
    if checkpoint.exists():
        average, history = _restore(learner, checkpoint)
    done = history[-1]["epoch"] if history else 0
    progress = tqdm(desc=title, unit="epoch", total=recipe.epochs, initial=done)
    losses = []
    for epoch in range(done, recipe.epochs):
        rng = np.random.default_rng((seed, epoch))
        order = rng.permutation(train)
        for i in range(steps):
            chosen = order[i * batch : (i + 1) * batch]
            rate = _one_cycle((epoch + i / steps) / recipe.epochs, recipe)
            draw = int(rng.integers(2**31))
            batch_of = _mixed(sample(chosen, rng), targets[chosen], recipe.mixup, rng)
            losses.append(learner.step(*batch_of, rate, draw))

        weights = learner.get_weights()
        average = _average(average, weights, min(recipe.average, (1 + epoch) / (10 + epoch)))
        progress.update()
        if (epoch + 1) % CHECKPOINT_EVERY == 0 or epoch + 1 == recipe.epochs:
            history.append({"epoch": epoch + 1, "loss": float(np.mean(losses))})
            if watched:
                learner.set_weights(average)
                said = _logits(learner, watched[0]).argmax(axis=1)
                learner.set_weights(weights)
                history[-1]["correct"] = int((said == watched[1]).sum())
                if watch:
                    shares = [row["correct"] / len(said) for row in history]
                    watch(
                        title,
                        [row | {"held_out_accuracy": s} for row, s in zip(history, shares, strict=True)],
                    )
            _save(learner, average, history, checkpoint)
            progress.set_postfix(loss=f"{history[-1]['loss']:.3f}")
            losses = []
    progress.close()
    learner.set_weights(average)
    return history


def _mixed(features, targets, strength, rng):
    """Mixup, of features where a trunk is frozen (Zhang et al., 2018; Verma et al., 2019)."""
    if not strength:
        return features, targets
    share, other = np.float32(rng.beta(strength, strength)), rng.permutation(len(targets))
    return share * features + (1 - share) * features[other], share * targets + (1 - share) * targets[other]


def _one_cycle(progress, recipe):
    """Learning rate at `progress` 0..1: cosine up to the peak, cosine down to nearly zero."""
    if progress < recipe.warm_up:
        low, high, part = recipe.learning_rate / 25, recipe.learning_rate, progress / recipe.warm_up
    else:
        part = (progress - recipe.warm_up) / (1 - recipe.warm_up)
        low, high = recipe.learning_rate, recipe.learning_rate / 1e4
    return float(low + (high - low) * (1 - np.cos(np.pi * part)) / 2)


def _average(average, weights, decay):
    return [
        (decay * a + (1 - decay) * w).astype(w.dtype) if w.dtype.kind == "f" else w
        for a, w in zip(average, weights, strict=True)
    ]


def _sampler(recipe, pixels, views):
    """Return sample(indices, rng) -> what a step trains on: fresh views, or cached ones."""

    def fresh(indices, rng):
        return np.stack([augment(pixels[i, 0], recipe.augmentation, rng) for i in indices])[:, None]

    def cached(indices, rng):
        return np.float32(views[rng.integers(len(views), size=len(indices)), indices])

    return fresh if views is None else cached


def _cached_views(learner, recipe, pixels, path, seed):
    """Trunk features of `cached_views` views of every film: float16 [V, N, ...], kept at `path`."""
    if not path.exists():
        shape = (recipe.cached_views, len(pixels), *learner.features(pixels[:1]).shape[1:])
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:  # not a memory map: a full disk would end the process at once
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f2", "fortran_order": False, "shape": shape}
            )
            for v in tqdm(range(shape[0]), desc="frozen features", unit="view"):
                rng = np.random.default_rng((seed, v))
                seen = np.stack([augment(film[0], recipe.augmentation, rng) for film in pixels])
                file.write(_features(learner, seen[:, None]).astype("<f2").tobytes())
        partial.replace(path)
    return np.load(path, mmap_mode="r")


def _features(learner, pixels):
    return _in_chunks(learner.features, pixels)


def _logits(learner, features):
    return _in_chunks(learner.logits, features)


def _in_chunks(function, inputs, size=64):
    return np.concatenate([function(inputs[i : i + size]) for i in range(0, len(inputs), size)])


def _save(learner, average, history, path):
    parts = {
        "weights": learner.get_weights(),
        "optimizer": learner.get_optimizer(),
        "average": average,
    }
    arrays = {f"{part}.{i}": a for part, some in parts.items() for i, a in enumerate(some)}
    partial = path.with_suffix(".partial")
    save_file(arrays, partial, metadata={"history": json.dumps(history)})
    partial.replace(path)  # a kill in mid-write leaves the old checkpoint whole


def _restore(learner, path):
    """Take up a checkpoint; return the averaged weights and the history."""
    with safe_open(path, "np") as file:
        history = json.loads(file.metadata()["history"])
        parts = {"weights": {}, "optimizer": {}, "average": {}}
        for key in file.keys():  # noqa: SIM118, not a dict
            part, i = key.split(".")
            parts[part][int(i)] = file.get_tensor(key)
    weights, optimizer, average = ([part[i] for i in sorted(part)] for part in parts.values())
    learner.set_weights(weights)
    learner.set_optimizer(optimizer)
    return average, history
