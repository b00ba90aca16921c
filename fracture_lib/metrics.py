"""Scores of predicted probabilities against labels, their intervals, and temperature scaling.

Throughout: logits and probabilities float [N, 10], labels int [N] in 0..9, groups int [N].
"""

import numpy as np

from fracture_lib.labels import CLASSES

__all__ = [
    "brier",
    "calibrate_across_groups",
    "conformal_sets",
    "expected_calibration_error",
    "fit_temperature",
    "fit_weights",
    "mean_with_interval",
    "paired_difference",
    "parts",
    "pool",
    "pool_across_groups",
    "reliability",
    "report",
    "selective",
    "softmax",
    "wilson",
]

BINS = 15
RESAMPLES = 1000
PARTS = 5  # of the groups, where something is fitted on some films and measured on others


def softmax(logits, temperature=1.0):
    """Logits -> probabilities whose rows sum to 1; a `temperature` above 1 makes them humbler."""
    scaled = (logits - logits.max(axis=1, keepdims=True)) / temperature
    exponentials = np.exp(scaled)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def brier(probabilities, labels):
    """Mean squared distance to the one-hot label, 0..2 (Brier, 1950)."""
    return float(((probabilities - np.eye(len(CLASSES))[labels]) ** 2).sum(axis=1).mean())


def expected_calibration_error(probabilities, labels):
    """Mean gap between confidence and accuracy over 15 equal bins of confidence, 0..1.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    gaps = np.bincount(_bin_of(confidence), weights=correct - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(labels))


def reliability(probabilities, labels, groups):
    """Return a JSON-ready list of the bins of `expected_calibration_error` that hold films.

    Each is a dict: "confidence", the mean in the bin, "accuracy", "n" films, and "low" and "high", the
    95 % Wilson score interval of the accuracy (Wilson, 1927). It counts a group as one trial, as films
    of one patient are not independent; a bootstrap would give a bin of two wrong films no width at all.
    """
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    bin_of = _bin_of(confidence)
    bins = []
    for b in np.unique(bin_of):
        here = bin_of == b
        accuracy = correct[here].mean()
        low, high = wilson(accuracy, len(np.unique(groups[here])))
        bins.append(
            {
                "confidence": _round(confidence[here].mean()),
                "accuracy": _round(accuracy),
                "n": int(here.sum()),
                "low": _round(low),
                "high": _round(high),
            }
        )
    return bins


def _bin_of(confidence):
    return np.minimum((confidence * BINS).astype(int), BINS - 1)


def wilson(share, trials, z=1.96):
    """Return the 95 % score interval (low, high) of a share of `trials` (Wilson, 1927)."""
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * np.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2) / (1 + z * z / trials)
    return centre - half, centre + half


def fit_temperature(logits, labels):
    """Return the temperature that minimises the negative log-likelihood (Guo et al., 2017)."""
    from scipy.optimize import minimize_scalar

    def loss(log_temperature):
        return _negative_log_likelihood(softmax(logits, np.exp(log_temperature)), labels)

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))


def pool(probabilities, weights=None):
    """Several models' probabilities, a list of M [N, 10] -> logits [N, 10] of their mean, an ensemble.

    `weights` float [M], none negative, equal if not given; only their ratios count. The linear opinion
    pool (Stone, The Opinion Pool, 1961).
    """
    return np.log(np.maximum(np.average(probabilities, axis=0, weights=weights), 1e-12))


def fit_weights(probabilities, labels):
    """Return weights float [M], 0..1, sum 1, that give the models' `pool` the greatest likelihood.

    `probabilities`, a list of M [N, 10], must be of films that the models were not trained on: stacking
    (Wolpert, 1992), by likelihood as in Smyth and Wolpert, Linearly Combining Density Estimators via
    Stacking, 1999. The problem is convex, so where it starts does not matter.
    """
    from scipy.optimize import minimize

    of_label = np.array(probabilities, float)[:, np.arange(len(labels)), labels].clip(1e-12)
    return minimize(
        lambda weights: -np.log(weights @ of_label).mean(),
        np.full(len(of_label), 1 / len(of_label)),
        jac=lambda weights: -(of_label / (weights @ of_label)).mean(axis=1),
        method="SLSQP",
        bounds=[(0, 1)] * len(of_label),
        constraints={"type": "eq", "fun": lambda weights: weights.sum() - 1},
        options={"ftol": 1e-12},
    ).x


def parts(groups):
    """Yield boolean masks [N]: each a part of the films, groups kept whole, together all of them."""
    part = np.unique(groups, return_inverse=True)[1] % PARTS
    for p in np.unique(part):
        yield part == p


def calibrate_across_groups(logits, labels, groups):
    """Return probabilities, each film's cooled by a temperature fitted on the other groups' films.

    So a calibration figure of the result is not flattered by films that chose the temperature.
    """
    probabilities = np.empty(logits.shape)
    for here in parts(groups):
        probabilities[here] = softmax(logits[here], fit_temperature(logits[~here], labels[~here]))
    return probabilities


def pool_across_groups(logits, labels, groups, weigh=fit_weights):
    """Models' logits, a list of M [N, 10] -> probabilities [N, 10] of their pool, fitted across groups.

    All that a film's answer needs is fitted on the other groups' films alone: the models' temperatures,
    their weights by `weigh(probabilities, labels)`, and the pool's temperature, as a pool of calibrated
    models is too humble (Ranjan and Gneiting, Combining Probability Forecasts, 2010).
    """
    probabilities = np.empty(logits[0].shape)
    for here in parts(groups):
        members = [softmax(some, fit_temperature(some[~here], labels[~here])) for some in logits]
        pooled = pool(members, weigh([member[~here] for member in members], labels[~here]))
        probabilities[here] = softmax(pooled[here], fit_temperature(pooled[~here], labels[~here]))
    return probabilities


def conformal_sets(probabilities, labels, groups, level=0.9):
    """Return a JSON-ready dict about sets of classes that hold the true one at the rate `level`.

    A class is in a film's set when its probability is at least a threshold, fitted so that the rate
    holds (split conformal prediction with the score 1 - probability of the true class; Sadinle et
    al., 2019). "coverage" and "mean_size" are measured with thresholds fitted on the other groups'
    films; "threshold" is fitted on all, for use on new ones.
    """
    of_label = probabilities[np.arange(len(labels)), labels]
    covered, size = np.empty(len(labels)), np.empty(len(labels))
    for here in parts(groups):
        threshold = _conformal_threshold(of_label[~here], level)
        covered[here] = of_label[here] >= threshold
        size[here] = (probabilities[here] >= threshold).sum(axis=1)
    return {
        "level": level,
        "coverage": mean_with_interval(covered, groups),
        "mean_size": mean_with_interval(size, groups),
        "threshold": _round(_conformal_threshold(of_label, level)),
    }


def _conformal_threshold(of_label, level):
    rank = int(np.floor((len(of_label) + 1) * (1 - level)))  # so many of n + 1 may fall below
    return np.sort(of_label)[rank - 1] if rank else 0.0


def selective(probabilities, labels, groups):
    """Return a JSON-ready dict: how accurate a model is on the films that it is surest of.

    "risk_coverage" pairs coverage, the share of films answered, most confident first, with risk, the
    share of wrong answers among them (El-Yaniv and Wiener, 2010); "accuracy_at" has coverages 0.5,
    0.8 and 1, with intervals.
    """
    wrong = (probabilities.argmax(axis=1) != labels).astype(float)
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    risk = np.cumsum(wrong[order]) / np.arange(1, len(order) + 1)

    def answered(coverage):
        return max(1, round(coverage * len(order)))

    surest = {c: order[: answered(c)] for c in (0.5, 0.8, 1.0)}
    return {
        "risk_coverage": [
            [round(c, 2), _round(risk[answered(c) - 1])] for c in np.linspace(0.05, 1, 20).tolist()
        ],
        "accuracy_at": {
            str(c): mean_with_interval(1 - wrong[films], groups[films]) for c, films in surest.items()
        },
    }


def mean_with_interval(values, groups):
    """Values float [N] -> {"value", "low", "high"}: mean and 95 % bootstrap interval over groups."""
    draws = [values[films].mean() for films in _resamples(groups, RESAMPLES)]
    low, high = _interval(draws)
    return {"value": _round(values.mean()), "low": _round(low), "high": _round(high)}


def paired_difference(probabilities, others, labels, groups):
    """Return a JSON-ready dict: accuracy and negative log-likelihood of `probabilities` minus `others`'.

    Paired on the same films, with 95 % bootstrap intervals over groups: one that holds 0 shows no
    difference.
    """

    def scores(some):
        of_label = some[np.arange(len(labels)), labels]
        return (some.argmax(axis=1) == labels).astype(float), -np.log(np.maximum(of_label, 1e-12))

    names = ("accuracy", "negative_log_likelihood")
    return {
        name: mean_with_interval(ours - theirs, groups)
        for name, ours, theirs in zip(names, scores(probabilities), scores(others), strict=True)
    }


def _resamples(groups, resamples, seed=0):
    """Yield `resamples` arrays of film indices, each of as many groups, drawn with replacement."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == g) for g in np.unique(groups)]
    for _ in range(resamples):
        yield np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))])


def report(probabilities, labels, groups, resamples=RESAMPLES, seed=0):
    """Return a JSON-ready dict: n, headline metrics with 95 % intervals, per-class table, confusion.

    Intervals are percentiles of a bootstrap that draws whole groups, as films of one patient are
    not independent. A metric that is undefined (AUROC of a single class) is None.
    """
    draws = [
        list(_headlines(probabilities[films], labels[films]).values())
        for films in _resamples(groups, resamples, seed)
    ]
    low, high = np.array([_interval(draw) for draw in zip(*draws, strict=True)]).T
    values = _headlines(probabilities, labels)
    return {
        "n": len(labels),
        "groups": len(np.unique(groups)),
        "interval": f"95 %, percentile bootstrap over groups, {resamples} resamples",
        "metrics": {
            name: {"value": _round(value), "low": _round(low[i]), "high": _round(high[i])}
            for i, (name, value) in enumerate(values.items())
        },
        "per_class": _per_class(probabilities, labels),
        "confusion_matrix": _confusion(probabilities, labels).tolist(),  # rows true, columns said
    }


def _headlines(probabilities, labels):
    said = probabilities.argmax(axis=1)
    of_label = probabilities[np.arange(len(labels)), labels]
    confusion = _confusion(probabilities, labels)
    present = confusion.sum(axis=1) > 0
    recall = confusion.diagonal()[present] / confusion.sum(axis=1)[present]
    return {
        "accuracy": np.mean(said == labels),
        "top3_accuracy": np.mean((probabilities > of_label[:, None]).sum(axis=1) < 3),
        "macro_f1": np.mean(_f1(confusion)[present]),
        "balanced_accuracy": recall.mean(),
        "macro_auroc": _mean_or_nan([auroc for auroc in _aurocs(probabilities, labels) if auroc]),
        "negative_log_likelihood": _negative_log_likelihood(probabilities, labels),
        "brier": brier(probabilities, labels),
        "expected_calibration_error": expected_calibration_error(probabilities, labels),
    }


def _interval(draw):
    defined = [value for value in draw if not np.isnan(value)]
    return np.percentile(defined, [2.5, 97.5]) if defined else (np.nan, np.nan)


def _per_class(probabilities, labels):
    confusion = _confusion(probabilities, labels)
    said, true, right = confusion.sum(axis=0), confusion.sum(axis=1), confusion.diagonal()
    return [
        {
            "label": c.label,
            "n": int(true[c.id]),
            "precision": _round(right[c.id] / said[c.id]) if said[c.id] else None,
            "recall": _round(right[c.id] / true[c.id]) if true[c.id] else None,
            "f1": _round(_f1(confusion)[c.id]) if true[c.id] else None,
            "auroc": _round(auroc),
        }
        for c, auroc in zip(CLASSES, _aurocs(probabilities, labels), strict=True)
    ]


def _confusion(probabilities, labels):
    size = len(CLASSES)
    pairs = labels * size + probabilities.argmax(axis=1)
    return np.bincount(pairs, minlength=size * size).reshape(size, size)


def _f1(confusion):
    named = confusion.sum(axis=0) + confusion.sum(axis=1)
    return np.where(named > 0, 2 * confusion.diagonal() / np.maximum(named, 1), 0.0)


def _aurocs(probabilities, labels):
    """One-against-rest areas under the ROC curve by the rank-sum formula; None where undefined."""
    from scipy.stats import rankdata

    ranks = rankdata(probabilities, axis=0)
    areas = []
    for c in range(probabilities.shape[1]):
        positive = labels == c
        p, n = positive.sum(), (~positive).sum()
        areas.append(float((ranks[positive, c].sum() - p * (p + 1) / 2) / (p * n)) if p and n else None)
    return areas


def _negative_log_likelihood(probabilities, labels):
    of_label = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(of_label, 1e-12)).mean())


def _mean_or_nan(values):
    return np.mean(values) if values else np.nan


def _round(value):
    return None if value is None or np.isnan(value) else round(float(value), 4)
