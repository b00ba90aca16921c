"""The figures draw what evaluation.json holds, no more and no less."""

import json
import re

import pytest

from fracture_lib import CLASSES, MODELS
from fracture_lib.hub import BUNDLE
from fracture_lib.page import figures

EVERYONE = [*MODELS, "ensemble"]


def evaluation_of(name):
    return json.loads((BUNDLE / name / "evaluation.json").read_text(encoding="utf-8"))


@pytest.fixture(params=EVERYONE)
def evaluation(request):
    return evaluation_of(request.param)


@pytest.fixture
def evaluations():
    return [evaluation_of(name) for name in EVERYONE]


def all_figures(evaluation, evaluations):
    drawn = (
        figures.confusion_matrix(evaluation),
        figures.reliability(evaluation),
        figures.training_curve(evaluation),
        figures.risk_coverage(evaluations),
        figures.accuracy_bars(evaluations),
    )
    return [figure for figure in drawn if figure is not None]


def test_the_confusion_matrix_counts_films_and_shades_by_the_true_class(evaluation):
    (heatmap,) = figures.confusion_matrix(evaluation).data
    matrix = evaluation["confusion_matrix"]
    assert [list(row) for row in heatmap.text] == matrix
    for true in CLASSES:
        n = evaluation["per_class"][true.id]["n"]
        assert sum(heatmap.z[true.id]) == pytest.approx(1)
        for said in CLASSES:
            count = matrix[true.id][said.id]
            assert heatmap.z[true.id][said.id] == count / n
            assert heatmap.hovertext[true.id][said.id] == (
                f"true {true.label}, said {said.label}:<br>{count} of {n} films, {100 * count / n:.0f} %"
            )


def test_a_class_without_films_is_an_empty_row():
    empty = {"confusion_matrix": [[0] * 10] * 10}
    (heatmap,) = figures.confusion_matrix(empty).data
    assert list(heatmap.z[3]) == [0] * 10 and heatmap.hovertext[3][4].endswith("0 of 0 films, 0 %")


def test_reliability_draws_every_bin_with_its_interval(evaluation):
    figure = figures.reliability(evaluation)
    (points,) = figure.data
    bins = evaluation["reliability"]
    assert list(points.x) == [b["confidence"] for b in bins]
    assert list(points.y) == [b["accuracy"] for b in bins]
    for i, b in enumerate(bins):
        assert points.y[i] + points.error_y.array[i] == pytest.approx(b["high"])
        assert points.y[i] - points.error_y.arrayminus[i] == pytest.approx(b["low"])
        assert f"{b['n']} films" in points.hovertext[i]
    error = evaluation["metrics"]["expected_calibration_error"]["value"]
    assert f"{error:.3f}" in figure.layout.annotations[0].text


def test_the_training_curve_is_the_history_and_the_ensemble_has_none(evaluation):
    figure = figures.training_curve(evaluation)
    if evaluation["model"] == "ensemble":
        assert figure is None
        return
    history = evaluation["training"]["history"]
    for curve, key in zip(figure.data, ("loss", "held_out_accuracy"), strict=True):
        assert list(curve.x) == [row["epoch"] for row in history]
        assert list(curve.y) == [row[key] for row in history]
    last = figure.data[1].hovertext[-1]
    assert last.startswith(f"epoch {history[-1]['epoch']}: {100 * history[-1]['held_out_accuracy']:.1f} %")


def test_risk_coverage_ends_at_the_accuracy_on_all_films(evaluations):
    curves = figures.risk_coverage(evaluations).data
    assert [curve.name for curve in curves] == EVERYONE
    for curve, evaluation in zip(curves, evaluations, strict=True):
        assert curve.x[-1] == 1
        assert curve.y[-1] == pytest.approx(evaluation["metrics"]["accuracy"]["value"], abs=1e-4)
        assert f"{evaluation['n']} films" in curve.hovertext[-1]


def test_accuracy_bars_show_intervals_the_reference_and_what_knowing_nothing_scores(evaluations):
    figure = figures.accuracy_bars(evaluations)
    ours, theirs = figure.data
    assert list(ours.y) == list(theirs.y) == EVERYONE
    for i, evaluation in enumerate(evaluations):
        accuracy = evaluation["metrics"]["accuracy"]
        assert ours.x[i] == accuracy["value"]
        assert ours.x[i] + ours.error_x.array[i] == pytest.approx(accuracy["high"])
        assert ours.x[i] - ours.error_x.arrayminus[i] == pytest.approx(accuracy["low"])
    assert list(theirs.x) == [*(spec.reference_accuracy for spec in MODELS.values()), None]
    assert {shape.name: round(shape.x0, 3) for shape in figure.layout.shapes} == {
        "chance, 10 %": 0.1,
        "always the commonest class, 13.9 %": 0.139,
    }


def test_a_model_has_one_colour_in_all_figures(evaluations):
    for curve, evaluation in zip(figures.risk_coverage(evaluations).data, evaluations, strict=True):
        (points,) = figures.reliability(evaluation).data
        assert curve.line.color == points.marker.color == figures.COLOURS[evaluation["model"]]
    assert len(set(figures.COLOURS.values())) == len(EVERYONE)


def test_figures_show_the_page_behind_them_take_its_width_and_ask_nobody(evaluation, evaluations):
    for figure in all_figures(evaluation, evaluations):
        look = figure.layout.template.layout
        assert look.paper_bgcolor == look.plot_bgcolor == "rgba(0, 0, 0, 0)"
        assert figure.layout.width is None and figure.layout.title.text is None
        assert not re.search(r"https?://", figure.to_json())
