"""Plotly figures of what evaluation.json holds: pure functions, for the page alone.

Each takes the content of one evaluation.json, or a list of several, and returns a
`plotly.graph_objects.Figure` without a title, as wide as its place and legible on light and dark pages.
They draw what was measured and compute nothing but shares.
"""

import plotly.graph_objects as go

from fracture_lib.cards import percent
from fracture_lib.labels import CLASSES
from fracture_lib.registry import ENSEMBLE, MODELS

__all__ = ["COLOURS", "accuracy_bars", "confusion_matrix", "reliability", "risk_coverage", "training_curve"]

# Okabe and Ito's palette, told apart with any colour vision (Color Universal Design, 2008).
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")
COLOURS = dict(zip((*MODELS, ENSEMBLE), PALETTE, strict=True))
GREY = "#808080"  # for text: nearly the same contrast to white as to the page's darkest
FAINT = "rgba(128, 128, 128, 0.3)"
CLEAR = "rgba(0, 0, 0, 0)"
AXIS = {
    "automargin": True,
    "fixedrange": True,  # nothing zooms, so a finger that scrolls the page is not caught
    "gridcolor": FAINT,
    "zeroline": False,
    "ticks": "outside",  # unseen, they keep the two zeros in a corner apart
    "ticklen": 6,
    "tickcolor": CLEAR,
    "title": {"standoff": 8, "font": {"size": 12}},  # longer than the plot is wide on a phone otherwise
}
LOOK = {
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
SHARE = {"tickformat": ".0%", "range": [0, 1.03], "dtick": 0.2}  # an axis; leaves room for "100%"


def confusion_matrix(evaluation):
    """Rows true, columns said; colour is the share of the row's films, the number their count."""
    counts = evaluation["confusion_matrix"]
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]  # a class may have no films
    heatmap = go.Heatmap(
        x=LABELS,
        y=LABELS,
        z=shares,
        text=counts,
        texttemplate="%{text}",
        hovertext=[
            [
                f"true {true}, said {said}:<br>{row[j]} of {sum(row)} films, {100 * shares[i][j]:.0f} %"
                for j, said in enumerate(LABELS)
            ]
            for i, (true, row) in enumerate(zip(LABELS, counts, strict=True))
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
            "tickformat": ".0%",
            "title": {"text": "share of the true class", "side": "top"},
        },
    )
    return _figure(
        [heatmap],
        height=500,
        xaxis={"title": {"text": "said", "standoff": 24}, "tickangle": -90, "showgrid": False},
        yaxis={"title": "true", "autorange": "reversed", "showgrid": False},
    )


def reliability(evaluation):
    """Accuracy against confidence, bin by bin, with 95 % intervals; on the diagonal is calibrated."""
    bins, colour = evaluation["reliability"], COLOURS[evaluation["model"]]
    error = evaluation["metrics"]["expected_calibration_error"]
    points = go.Scatter(
        x=[b["confidence"] for b in bins],
        y=[b["accuracy"] for b in bins],
        mode="markers",
        marker={
            "color": colour,
            "size": [b["n"] for b in bins],
            "sizemode": "area",
            "sizeref": max(b["n"] for b in bins) / 400,  # the largest is 20 pixels wide
            "sizemin": 3,
            "line": {"width": 0},
        },
        cliponaxis=False,
        error_y=_whiskers([(b["accuracy"], b["low"], b["high"]) for b in bins], colour),
        hovertext=[
            f"{100 * b['confidence']:.1f} % sure on average:<br>"
            f"{percent({**b, 'value': b['accuracy']})} right, {b['n']} films"
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
        annotations=[
            {
                "text": f"calibration error {error['value']:.3f}<br>"
                f"({error['low']:.3f} to {error['high']:.3f})",
                "x": 0.02,
                "y": 0.98,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "left",
                "yanchor": "top",
                "align": "left",
                "showarrow": False,
            }
        ],
    )


def training_curve(evaluation):
    """Loss above, accuracy on the held-out folds below, by epoch; None for the ensemble, never trained."""
    if "training" not in evaluation:
        return None
    history, colour = evaluation["training"]["history"], COLOURS[evaluation["model"]]
    epochs = [row["epoch"] for row in history]

    def curve(key, said, yaxis):
        return go.Scatter(
            x=epochs,
            y=[row[key] for row in history],
            yaxis=yaxis,
            mode="lines+markers",
            line={"color": colour},
            marker={"size": 4},
            hovertext=[f"epoch {row['epoch']}: {said(row[key])}" for row in history],
            hoverinfo="text",
            showlegend=False,
        )

    return _figure(
        [
            curve("loss", lambda loss: f"loss {loss:.3f}", "y"),
            curve("held_out_accuracy", lambda share: f"{100 * share:.1f} % of held-out films right", "y2"),
        ],
        height=380,
        xaxis={"title": "epoch", "rangemode": "tozero", "anchor": "y2"},
        yaxis={"title": "training loss", "domain": [0.54, 1]},
        yaxis2={
            "title": "held-out accuracy",
            "domain": [0, 0.46],
            "tickformat": ".0%",
            "rangemode": "tozero",
        },
    )


def risk_coverage(evaluations):
    """Accuracy on the films answered against their share, when each model answers its surest first."""
    dashes = ("solid", "dash", "dot", "dashdot")
    curves = []
    for evaluation, dash in zip(evaluations, dashes, strict=False):
        name = evaluation["model"]
        pairs = evaluation["selective"]["risk_coverage"]
        curves.append(
            go.Scatter(
                x=[coverage for coverage, _ in pairs],
                y=[1 - risk for _, risk in pairs],
                name=name,
                mode="lines",
                line={"color": COLOURS[name], "width": 2.5, "dash": dash},
                hovertext=[
                    f"{name}: {100 * (1 - risk):.1f} % right<br>on the surest {100 * coverage:.0f} %, "
                    f"{round(coverage * evaluation['n'])} films"
                    for coverage, risk in pairs
                ],
                hoverinfo="text",
            )
        )
    return _figure(
        curves,
        height=380,
        xaxis={"title": "share answered, surest first", **SHARE},
        yaxis={"title": "accuracy on them", **SHARE},
    )


def accuracy_bars(evaluations):
    """Each model's accuracy with its 95 % interval, beside what the work that it reimplements reported.

    Two lines tell what knowing nothing scores: chance, and always naming the commonest class.
    """
    names = [evaluation["model"] for evaluation in evaluations]
    accuracies = [evaluation["metrics"]["accuracy"] for evaluation in evaluations]
    references = [MODELS[name].reference_accuracy if name in MODELS else None for name in names]
    majority = max(row["n"] for row in evaluations[0]["per_class"]) / evaluations[0]["n"]
    colours = [COLOURS[name] for name in names]
    # Leaves room for the reference's figure to the right of its bar.
    end = 1.25 * max([accuracy["high"] for accuracy in accuracies] + [r for r in references if r])
    ours = go.Bar(
        x=[accuracy["value"] for accuracy in accuracies],
        y=names,
        orientation="h",
        marker={"color": colours, "opacity": 0.45, "line": {"color": colours, "width": 1}},
        error_x=_whiskers([(a["value"], a["low"], a["high"]) for a in accuracies], GREY),
        hovertext=[
            f"{e['model']}:<br>{percent(accuracy)}, n = {e['n']}"
            for e, accuracy in zip(evaluations, accuracies, strict=True)
        ],
        hoverinfo="text",
        showlegend=False,
    )
    theirs = go.Bar(
        x=references,
        y=names,
        orientation="h",
        name="reference work, its own split",
        marker_color=FAINT,
        text=[f"{100 * reference:.1f} %" if reference else None for reference in references],
        textposition="outside",
        hovertext=[
            f"{name}:<br>{100 * reference:.2f} % in the reference work" if reference else None
            for name, reference in zip(names, references, strict=True)
        ],
        hoverinfo="text",
    )
    levels = {
        f"chance, {100 / len(CLASSES):.0f} %": (1 / len(CLASSES), "dot"),
        f"always the commonest class, {100 * majority:.1f} %": (majority, "dash"),
    }
    return _figure(
        [ours, theirs],
        height=360,
        xaxis={"title": "accuracy, 95 % interval", "tickformat": ".0%", "range": [0, end]},
        yaxis={
            "autorange": "reversed",
            "showgrid": False,
            "tickvals": names,
            "ticktext": [
                f'{name}<br><b style="color:{colour}">{100 * accuracy["value"]:.1f} %</b>'
                for name, colour, accuracy in zip(names, colours, accuracies, strict=True)
            ],
        },
        shapes=[
            _line(x0=x, x1=x, y0=0, y1=1, yref="paper", dash=dash, name=name, showlegend=True)
            for name, (x, dash) in levels.items()
        ],
    )


def _whiskers(intervals, colour):
    """[(value, low, high)] -> error bars."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, _, high in intervals],
        "arrayminus": [value - low for value, low, _ in intervals],
        "color": colour,
        "thickness": 1.5,
        "width": 4,
    }


def _line(dash, **place):
    return {"type": "line", "line": {"color": GREY, "width": 1.5, "dash": dash}, "layer": "above", **place}


def _figure(traces, **layout):
    return go.Figure(traces, {"template": {"layout": LOOK}, **layout})
