"""Plotly figures of evaluation reports: pure functions, for the page and the notebook.

Each returns a figure without a title that takes the width of its container and reads well on light and
dark pages, or None if the report lacks that part. They draw what was measured and compute only shares.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import plotly.graph_objects as go

from fracture_lib.labels import CLASSES
from fracture_lib.models.report import EpochMetrics, EvaluationReport, Interval
from fracture_lib.registry import ALL_MODELS, MODELS, model_title

__all__ = [
    "COLORS",
    "accuracy_bars",
    "accuracy_coverage",
    "calibration",
    "class_bars",
    "confusion_matrix",
    "epoch_curves",
    "robustness_bars",
    "training_curves",
]

# Okabe and Ito's palette, distinct in every colour vision (Color Universal Design, 2008).
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
COLORS = dict(zip(ALL_MODELS, cycle(PALETTE), strict=False))
DASHES = dict(zip(ALL_MODELS, cycle(("solid", "dash", "dot", "dashdot", "longdash")), strict=False))
GREY = "#808080"  # nearly the same contrast to white as to the dark theme; style.css sets that of text
FAINT = "rgba(128, 128, 128, 0.3)"
CLEAR = "rgba(0, 0, 0, 0)"
AXIS = {
    "automargin": True,
    "fixedrange": True,  # without zoom, a finger can scroll the page over a plot
    "gridcolor": FAINT,
    "zeroline": False,
    "ticks": "outside",  # invisible, they keep the two zeros in a corner apart
    "ticklen": 6,
    "tickcolor": CLEAR,
    "title": {"standoff": 8, "font": {"size": 12}},  # a larger font is cut off on a phone
}
LAYOUT = {
    "margin": {"l": 4, "r": 12, "t": 8, "b": 12},
    "font": {"color": GREY, "family": "system-ui, sans-serif", "size": 12},
    "paper_bgcolor": CLEAR,
    "plot_bgcolor": CLEAR,
    "dragmode": False,
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    "xaxis": AXIS,
    "yaxis": AXIS,
}
LABELS = [c.label for c in CLASSES]


def _percent_ticks(step: int) -> dict[str, Any]:
    """Return axis settings with a tick every `step` per cent."""
    ticks = range(0, 101, step)
    return {"tickvals": [tick / 100 for tick in ticks], "ticktext": [f"{tick} %" for tick in ticks]}


SHARE = {"range": [0, 1.03], **_percent_ticks(20)}  # an axis with room for "100 %"


def confusion_matrix(report: EvaluationReport) -> go.Figure:
    """Draw true classes as rows, predicted as columns; colour is the share of the row, text the count."""
    counts = report.confusion_matrix
    totals = [sum(row) for row in counts]
    shares = [[n / max(total, 1) for n in row] for row, total in zip(counts, totals, strict=True)]
    heatmap = go.Heatmap(
        x=LABELS,
        y=LABELS,
        z=shares,
        text=counts,  # type: ignore[arg-type]  # the stubs have no rows of text
        texttemplate="%{text}",
        hovertext=[
            [
                f"true {true}, predicted {predicted}:<br>"
                f"{counts[i][j]} of {totals[i]} images, {100 * shares[i][j]:.0f} %"
                for j, predicted in enumerate(LABELS)
            ]
            for i, true in enumerate(LABELS)
        ],
        hoverinfo="text",
        zmin=0,
        zmax=max(map(max, shares)),
        colorscale="Cividis",
        xgap=1,
        ygap=1,
        colorbar={
            "orientation": "h",
            "y": 1,
            "yanchor": "bottom",
            "thickness": 8,
            **_percent_ticks(20),
            "title": {"text": "share of the true class", "side": "top"},
        },
    )
    return _figure(
        [heatmap],
        height=500,
        xaxis={"title": {"text": "predicted", "standoff": 24}, "tickangle": -90, "showgrid": False},
        yaxis={"title": "true", "autorange": "reversed", "showgrid": False},
    )


def calibration(report: EvaluationReport) -> go.Figure | None:
    """Draw accuracy against confidence per bin, with 95 % intervals; the diagonal is calibrated."""
    if not report.calibration:
        return None
    bins, color = report.calibration, COLORS[report.model]
    points = go.Scatter(
        x=[b.confidence for b in bins],
        y=[b.accuracy for b in bins],
        mode="markers",
        marker={
            "color": color,
            "size": [b.n for b in bins],
            "sizemode": "area",
            "sizeref": max(b.n for b in bins) / 400,  # the largest is 20 pixels wide
            "sizemin": 3,
            "line": {"width": 0},
        },
        cliponaxis=False,
        error_y=_error_bars([Interval(b.accuracy, b.low, b.high) for b in bins], color),
        hovertext=[
            f"mean confidence {100 * b.confidence:.1f} %:<br>"
            f"accuracy {Interval(b.accuracy, b.low, b.high).percent()}, {b.n} images"
            for b in bins
        ],
        hoverinfo="text",
    )
    return _figure(
        [points],
        height=380,
        xaxis={"title": "confidence", **SHARE},
        yaxis={"title": "accuracy", **SHARE},
        shapes=[_line(x0=0, y0=0, x1=1, y1=1, dash="dash")],
        annotations=[_calibration_error(report)],
    )


def _calibration_error(report: EvaluationReport) -> dict[str, Any]:
    error = report.metrics["expected_calibration_error"].percent().replace(" %", " points")
    return {
        "text": f"off by {error}",
        "x": 0.02,
        "y": 0.98,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "top",
        "align": "left",
        "showarrow": False,
    }


def class_bars(report: EvaluationReport) -> go.Figure:
    """Draw the recall of each class with its 95 % interval, the best first."""
    rows = sorted(report.per_class, key=lambda row: row.recall or 0, reverse=True)
    intervals = [row.recall_interval or Interval(row.recall, None, None) for row in rows]
    return _share_bars(
        report,
        {row.label: interval for row, interval in zip(rows, intervals, strict=True)},
        [f", {row.n} images" for row in rows],
        "share recognized, 95 % interval",
    )


def robustness_bars(report: EvaluationReport) -> go.Figure | None:
    """Draw the accuracy on altered images, beside that on the images as they are, from one view each."""
    if not report.robustness:
        return None
    unchanged = (report.by_views or {}).get("1")
    lines = []
    if unchanged and unchanged.value is not None:
        lines = [_line(x0=unchanged.value, x1=unchanged.value, y0=0, y1=1, yref="paper", dash="dash")]
    notes = [""] * len(report.robustness)
    return _share_bars(report, report.robustness, notes, "accuracy, 95 % interval", lines)


def _share_bars(
    report: EvaluationReport,
    intervals: Mapping[str, Interval],
    notes: Sequence[str],
    title: str,
    lines: Sequence[dict[str, Any]] = (),
) -> go.Figure:
    color = COLORS[report.model]
    bars = go.Bar(
        x=[interval.value for interval in intervals.values()],
        y=list(intervals),
        orientation="h",
        marker={"color": color, "opacity": 0.45, "line": {"color": color, "width": 1}},
        error_x=_error_bars(list(intervals.values()), GREY),
        hovertext=[
            f"{name}: {interval.percent()}{note}"
            for (name, interval), note in zip(intervals.items(), notes, strict=True)
        ],
        hoverinfo="text",
    )
    return _figure(
        [bars],
        height=380,
        xaxis={"title": title, "rangemode": "tozero", **_percent_ticks(20)},
        yaxis={"autorange": "reversed", "showgrid": False},
        shapes=lines,
    )


def training_curves(report: EvaluationReport) -> go.Figure | None:
    """Draw the mean loss and accuracy over the measured folds, by epoch."""
    if not (report.training and report.training.history):
        return None
    return epoch_curves(report.model, report.training.history)


def epoch_curves(model: str, history: Sequence[EpochMetrics]) -> go.Figure:
    """Draw the loss above and the held-out accuracy below, by epoch."""
    epochs = [row.epoch for row in history]

    def curve(values: list[float], describe: Callable[[float], str], yaxis: str) -> go.Scatter:
        return go.Scatter(
            x=epochs,
            y=values,
            yaxis=yaxis,
            mode="lines+markers",
            line={"color": COLORS[model]},
            marker={"size": 4},
            hovertext=[
                f"epoch {epoch}: {describe(value)}" for epoch, value in zip(epochs, values, strict=True)
            ],
            hoverinfo="text",
            showlegend=False,
        )

    return _figure(
        [
            curve([row.loss for row in history], lambda loss: f"loss {loss:.3f}", "y"),
            curve(
                [row.held_out_accuracy for row in history],
                lambda share: f"held-out accuracy {100 * share:.1f} %",
                "y2",
            ),
        ],
        height=380,
        xaxis={"title": "epoch", "rangemode": "tozero", "anchor": "y2"},
        yaxis={"title": "training loss", "domain": [0.54, 1]},
        yaxis2={
            "title": "held-out accuracy",
            "domain": [0, 0.46],
            **_percent_ticks(10),
            "rangemode": "tozero",
        },
    )


def accuracy_coverage(reports: Sequence[EvaluationReport]) -> go.Figure | None:
    """Draw the accuracy if each model answers only its most confident share of the images."""
    curves = [
        go.Scatter(
            x=[coverage for coverage, _ in report.selective_risk.risk_coverage],
            y=[1 - risk for _, risk in report.selective_risk.risk_coverage],
            name=model_title(report.model),
            mode="lines",
            line={"color": COLORS[report.model], "width": 2.5, "dash": DASHES[report.model]},
            hovertext=[
                f"{model_title(report.model)}: accuracy {100 * (1 - risk):.1f} %<br>on the most confident "
                f"{100 * coverage:.0f} %, {round(coverage * report.n)} images"
                for coverage, risk in report.selective_risk.risk_coverage
            ],
            hoverinfo="text",
        )
        for report in reports
        if report.selective_risk
    ]
    if not curves:
        return None
    return _figure(
        curves,
        height=380,
        xaxis={"title": "coverage (most confident first)", **SHARE},
        yaxis={"title": "accuracy", **SHARE},
    )


def accuracy_bars(reports: Sequence[EvaluationReport]) -> go.Figure | None:
    """Draw each model's accuracy with its 95 % interval, beside that of the original project.

    Two lines mark the baselines: chance, and always predicting the most frequent class.
    """
    reports = [report for report in reports if report.accuracy.value is not None]
    if not reports:
        return None
    names = [report.model for report in reports]
    accuracies = [report.accuracy for report in reports]
    references = [MODELS[name].reference_accuracy if name in MODELS else None for name in names]
    majority = max(row.n for row in reports[0].per_class) / reports[0].n
    colors = [COLORS[name] for name in names]
    highest = max(v for a in accuracies for v in (a.value, a.high) if v is not None)
    measured = go.Bar(
        x=[accuracy.value for accuracy in accuracies],
        y=names,
        orientation="h",
        marker={"color": colors, "opacity": 0.45, "line": {"color": colors, "width": 1}},
        error_x=_error_bars(accuracies, GREY),
        hovertext=[f"{model_title(r.model)}:<br>{r.accuracy.percent()}, n = {r.n}" for r in reports],
        hoverinfo="text",
        showlegend=False,
    )
    original = go.Bar(
        x=references,
        y=names,
        orientation="h",
        name="original project (different split)",
        marker_color=FAINT,
        text=[f"{100 * reference:.0f} %" if reference else "" for reference in references],
        textposition="outside",
        hovertext=[
            f"{model_title(name)}:<br>{100 * reference:.2f} % in the original project" if reference else ""
            for name, reference in zip(names, references, strict=True)
        ],
        hoverinfo="text",
    )
    baselines = {
        f"chance, {100 / len(CLASSES):.0f} %": (1 / len(CLASSES), "dot"),
        f"most frequent type, {100 * majority:.0f} %": (majority, "dash"),
    }
    return _figure(
        [measured, original],
        height=360,
        xaxis={
            "title": "accuracy, 95 % interval",
            **_percent_ticks(20),
            # Leave room for the original project's figures to the right of their bars.
            "range": [0, 1.25 * max(highest, *(r for r in references if r), 0)],
        },
        yaxis={
            "autorange": "reversed",
            "showgrid": False,
            "tickvals": names,
            "ticktext": [
                f"{model_title(r.model)}<br><b>{100 * (r.accuracy.value or 0):.0f} %</b>" for r in reports
            ],
        },
        shapes=[
            _line(x0=x, x1=x, y0=0, y1=1, yref="paper", dash=dash, name=name, showlegend=True)
            for name, (x, dash) in baselines.items()
        ],
    )


def _error_bars(intervals: Sequence[Interval], color: str) -> dict[str, Any]:
    """Return error bars; an interval without bounds gets none."""

    def length(end: float | None, start: float | None) -> float:
        return 0 if end is None or start is None else end - start

    return {
        "type": "data",
        "symmetric": False,
        "array": [length(i.high, i.value) for i in intervals],
        "arrayminus": [length(i.value, i.low) for i in intervals],
        "color": color,
        "thickness": 1.5,
        "width": 4,
    }


def _line(dash: str, **position: Any) -> dict[str, Any]:
    line = {"color": GREY, "width": 1.5, "dash": dash}
    return {"type": "line", "line": line, "layer": "above", **position}


def _figure(traces: Sequence[Any], **layout: Any) -> go.Figure:
    return go.Figure(traces, {"template": {"layout": LAYOUT}, **layout})
