"""Compare predicted probabilities with labels: metrics, their intervals, tables and curves.

Throughout: probabilities float [N, 10], whose rows sum to 1; labels int [N] in 0..9; groups int [N], equal
for images of one patient or figure. Such images are not independent, so every interval counts groups.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fracture_lib.labels import CLASSES
from fracture_lib.models.functional import EPSILON, Floats
from fracture_lib.models.report import (
    CalibrationBin,
    ClassificationReport,
    ClassMetrics,
    Interval,
    SelectiveRisk,
    ViewAccuracy,
)

__all__ = [
    "Ints",
    "accuracy_by_views",
    "auroc",
    "bootstrap",
    "brier",
    "calibration_bins",
    "classification_report",
    "expected_calibration_error",
    "intervals",
    "mean_with_interval",
    "negative_log_likelihood",
    "paired_difference",
    "probability_of_label",
    "rounded",
    "selective_risk",
    "wilson",
]

Ints = NDArray[np.integer]

N_BINS = 15
N_RESAMPLES = 1000
DIGITS = 4  # of every number in a report
COVERAGES = (0.5, 0.8, 1.0)  # at which a report gives the accuracy
N_VIEWS = (1, 3)  # at which a report gives the accuracy, beside that of all views


def probability_of_label(probabilities: Floats, labels: Ints) -> Floats:
    """Return the probability [N] that each image's true class got."""
    return probabilities[np.arange(len(labels)), labels]


def negative_log_likelihood(probabilities: Floats, labels: Ints) -> float:
    """Return the mean negative log-probability of the true class, 0 or more."""
    return float(_log_losses(probabilities, labels).mean())


def brier(probabilities: Floats, labels: Ints) -> float:
    """Return the mean squared distance to the one-hot label, 0..2 (Brier, 1950)."""
    return float(((probabilities - np.eye(len(CLASSES))[labels]) ** 2).sum(axis=1).mean())


def expected_calibration_error(probabilities: Floats, labels: Ints) -> float:
    """Return the mean gap between confidence and accuracy over 15 equal bins of confidence, 0..1.

    Source: Guo et al., On Calibration of Modern Neural Networks, 2017.
    """
    confidence = probabilities.max(axis=1)
    gaps = np.bincount(
        _bin_numbers(confidence), weights=_correct(probabilities, labels) - confidence, minlength=N_BINS
    )
    return float(np.abs(gaps).sum() / len(labels))


def calibration_bins(probabilities: Floats, labels: Ints, groups: Ints) -> list[CalibrationBin]:
    """Return the bins of `expected_calibration_error` that hold images.

    The accuracy's interval is Wilson's with each group as one trial: a bootstrap would give a bin with two
    wrong images an interval of width zero.
    """
    confidence = probabilities.max(axis=1)
    correct = _correct(probabilities, labels)
    bin_numbers = _bin_numbers(confidence)
    bins = []
    for number in np.unique(bin_numbers):
        in_bin = bin_numbers == number
        accuracy = float(correct[in_bin].mean())
        low, high = wilson(accuracy, len(np.unique(groups[in_bin])))
        bins.append(
            CalibrationBin(
                confidence=_round(confidence[in_bin].mean()),
                accuracy=_round(accuracy),
                n=int(in_bin.sum()),
                low=_round(low),
                high=_round(high),
            )
        )
    return bins


def selective_risk(probabilities: Floats, labels: Ints, groups: Ints) -> SelectiveRisk:
    """Return how accurate a model is if it answers only the images that it is most confident about.

    Source: El-Yaniv and Wiener, On the Foundations of Noise-free Selective Classification, 2010.
    """
    wrong = 1 - _correct(probabilities, labels)
    order = np.argsort(-probabilities.max(axis=1), kind="stable")  # most confident first
    risk = np.cumsum(wrong[order]) / np.arange(1, len(order) + 1)

    def n_answered(coverage: float) -> int:
        return max(1, round(coverage * len(order)))

    answered = {coverage: order[: n_answered(coverage)] for coverage in COVERAGES}
    return SelectiveRisk(
        risk_coverage=[
            (round(coverage, 2), _round(risk[n_answered(coverage) - 1]))
            for coverage in np.linspace(0.05, 1, 20).tolist()
        ],
        accuracy_at={
            str(coverage): mean_with_interval(1 - wrong[images], groups[images])
            for coverage, images in answered.items()
        },
    )


def classification_report(
    probabilities: Floats, labels: Ints, groups: Ints, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> ClassificationReport:
    """Return headline metrics with 95 % intervals, metrics per class and the confusion matrix.

    Intervals are percentiles of `bootstrap`. A metric that is undefined, such as the AUROC of a single
    class, is None; means over classes skip the classes without an image.
    """
    values = _headline_metrics(probabilities, labels)
    resampled, recalls = [], []
    for images in bootstrap(groups, n_resamples, seed):
        resampled.append(_headline_metrics(probabilities[images], labels[images]))
        recalls.append(_recalls(_confusion_matrix(probabilities[images], labels[images])))
    return ClassificationReport(
        n=len(labels),
        n_groups=len(np.unique(groups)),
        interval=f"95 %, percentile bootstrap over groups, {n_resamples} resamples",
        metrics={
            name: _interval(value, [metrics[name] for metrics in resampled]) for name, value in values.items()
        },
        per_class=_class_metrics(probabilities, labels, groups, recalls),
        confusion_matrix=_confusion_matrix(probabilities, labels).tolist(),
    )


def mean_with_interval(values: Floats, groups: Ints) -> Interval:
    """Return the mean of `values` [N] with a 95 % bootstrap interval over groups."""
    means = [values[images].mean() for images in bootstrap(groups)]
    return _interval(values.mean(), means)


def accuracy_by_views(
    predict_proba: Callable[[int], Floats], n_views: int, labels: Ints, groups: Ints
) -> dict[str, ViewAccuracy]:
    """Return the accuracy of answers from the first 1, the first 3 and all `n_views` views of each image.

    `predict_proba(n)` returns the probabilities [N, 10] from the first n views.
    """
    results = {}
    for n in sorted({*(n for n in N_VIEWS if n < n_views), n_views}):
        probabilities = predict_proba(n)
        accuracy = mean_with_interval(_correct(probabilities, labels), groups)
        error = expected_calibration_error(probabilities, labels)
        results[str(n)] = ViewAccuracy(**vars(accuracy), expected_calibration_error=_round(error))
    return results


def intervals(
    measure: Callable[[NDArray[np.int64]], Mapping[str, float]], groups: Ints
) -> dict[str, Interval]:
    """Return what `measure` returns for all images, with 95 % bootstrap intervals over groups.

    `measure` takes the indices of images, in which one may occur several times, and returns values by name;
    NaN where a value is undefined.
    """
    values = measure(np.arange(len(groups)))
    resampled = [measure(images) for images in bootstrap(groups)]
    return {name: _interval(value, [v[name] for v in resampled]) for name, value in values.items()}


def paired_difference(
    probabilities: Floats, others: Floats, labels: Ints, groups: Ints
) -> dict[str, Interval]:
    """Return "accuracy" and "negative_log_likelihood" of `probabilities` minus those of `others` [N, 10].

    Both are of the same images. The 95 % bootstrap intervals over groups are of the difference per image,
    so one that contains 0 shows no difference.
    """
    correct = [_correct(p, labels) for p in (probabilities, others)]
    losses = [_log_losses(p, labels) for p in (probabilities, others)]
    return {
        "accuracy": mean_with_interval(correct[0] - correct[1], groups),
        "negative_log_likelihood": mean_with_interval(losses[0] - losses[1], groups),
    }


def wilson(share: float, n_trials: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % score interval (low, high) of a share of `n_trials` (Wilson, 1927)."""
    scale = 1 + z * z / n_trials
    centre = (share + z * z / (2 * n_trials)) / scale
    half = z * float(np.sqrt(share * (1 - share) / n_trials + (z / (2 * n_trials)) ** 2)) / scale
    return centre - half, centre + half


def bootstrap(groups: Ints, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Iterator[NDArray[np.int64]]:
    """Yield the image indices of `n_resamples` resamples: as many whole groups, drawn with replacement.

    Source: Efron, Bootstrap Methods: Another Look at the Jackknife, 1979; by groups, Field and Welsh,
    Bootstrapping Clustered Data, 2007.
    """
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    for _ in range(n_resamples):
        yield np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])


def rounded(value: float | None) -> float | None:
    """Return a number as a report holds it: four digits after the point; None for None and NaN."""
    return None if value is None or np.isnan(value) else _round(value)


def _round(value: float) -> float:
    return round(float(value), DIGITS)


def _interval(value: float, resampled: Iterable[float]) -> Interval:
    """Return `value` with the 95 % percentile interval of its resampled values, ignoring undefined ones."""
    defined = [v for v in resampled if not np.isnan(v)]
    low, high = np.percentile(defined, [2.5, 97.5]) if defined else (np.nan, np.nan)
    return Interval(rounded(value), rounded(low), rounded(high))


def _correct(probabilities: Floats, labels: Ints) -> NDArray[np.float64]:
    """Return 1.0 for each image whose most probable class is the true one, 0.0 for the others: [N]."""
    return (probabilities.argmax(axis=1) == labels).astype(float)


def _log_losses(probabilities: Floats, labels: Ints) -> Floats:
    return -np.log(np.maximum(probability_of_label(probabilities, labels), EPSILON))


def _bin_numbers(confidence: Floats) -> NDArray[np.int64]:
    return np.minimum((confidence * N_BINS).astype(np.int64), N_BINS - 1)


def _headline_metrics(probabilities: Floats, labels: Ints) -> dict[str, float]:
    p_true = probability_of_label(probabilities, labels)
    confusion = _confusion_matrix(probabilities, labels)
    present = confusion.sum(axis=1) > 0
    aurocs = [auroc for auroc in _aurocs(probabilities, labels) if auroc is not None]
    return {
        "accuracy": float(_correct(probabilities, labels).mean()),
        "top3_accuracy": float(np.mean((probabilities > p_true[:, None]).sum(axis=1) < 3)),
        "macro_f1": float(np.mean(_f1_scores(confusion)[present])),
        "balanced_accuracy": float(_recalls(confusion)[present].mean()),
        "macro_auroc": float(np.mean(aurocs)) if aurocs else np.nan,
        "negative_log_likelihood": negative_log_likelihood(probabilities, labels),
        "brier": brier(probabilities, labels),
        "expected_calibration_error": expected_calibration_error(probabilities, labels),
    }


def _class_metrics(
    probabilities: Floats, labels: Ints, groups: Ints, resampled_recalls: Sequence[Floats]
) -> list[ClassMetrics]:
    """Return one row per class; `resampled_recalls` [R][10] give the intervals of the recalls."""
    confusion = _confusion_matrix(probabilities, labels)
    recalls = _recalls(confusion)
    n_predicted, n_true, n_correct = confusion.sum(axis=0), confusion.sum(axis=1), confusion.diagonal()
    f1, aurocs = _f1_scores(confusion), _aurocs(probabilities, labels)
    return [
        ClassMetrics(
            label=c.label,
            n=int(n_true[c.id]),
            precision=_round(n_correct[c.id] / n_predicted[c.id]) if n_predicted[c.id] else None,
            recall=rounded(recalls[c.id]),
            f1=_round(f1[c.id]) if n_true[c.id] else None,
            auroc=rounded(aurocs[c.id]),
            recall_interval=_recall_interval(
                recalls[c.id], [recall[c.id] for recall in resampled_recalls], groups[labels == c.id]
            ),
        )
        for c in CLASSES
    ]


def _recall_interval(recall: float, resampled: Sequence[float], groups: Ints) -> Interval:
    """Return the bootstrap interval, or Wilson's with each group as one trial for a recall of 0 or 1.

    Every resample of such a class has the same recall, which would give an interval of width zero.
    """
    if recall in (0, 1):
        return Interval(rounded(recall), *map(_round, wilson(recall, len(np.unique(groups)))))
    return _interval(recall, resampled)


def _confusion_matrix(probabilities: Floats, labels: Ints) -> NDArray[np.int64]:
    """Return image counts [10, 10]; rows: true class, columns: predicted class."""
    size = len(CLASSES)
    cells = labels * size + probabilities.argmax(axis=1)
    return np.bincount(cells, minlength=size * size).reshape(size, size)


def _recalls(confusion: Ints) -> Floats:
    """Return each class's share of its images that are recognized: [10]; NaN without images."""
    n_true = confusion.sum(axis=1)
    return np.where(n_true > 0, confusion.diagonal() / np.maximum(n_true, 1), np.nan)


def _f1_scores(confusion: Ints) -> Floats:
    n_named = confusion.sum(axis=0) + confusion.sum(axis=1)
    return np.where(n_named > 0, 2 * confusion.diagonal() / np.maximum(n_named, 1), 0.0)


def _aurocs(probabilities: Floats, labels: Ints) -> Sequence[float | None]:
    """Return each class's area under the ROC curve against the rest; None where undefined."""
    values = [auroc(column, labels == c) for c, column in enumerate(probabilities.T)]
    return [None if np.isnan(value) else value for value in values]


def auroc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Return the area under the ROC curve, 0..1, of scores [N]; NaN if all or no images are positive.

    By the rank-sum formula (Hanley and McNeil, 1982), which is fast enough for a thousand resamples.
    """
    from scipy.stats import rankdata

    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return np.nan
    rank_sum = rankdata(scores)[positive].sum() - n_positive * (n_positive + 1) / 2
    return float(rank_sum / (n_positive * n_negative))
