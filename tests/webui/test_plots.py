"""The plots show exactly what evaluation.json contains."""

import re
from dataclasses import replace
from typing import Any

import pytest

from fracture_lib.hub import BUNDLE
from fracture_lib.labels import CLASSES
from fracture_lib.models.report import EvaluationReport
from fracture_lib.registry import ALL_MODELS, ENSEMBLE, MODELS, model_title
from fracture_lib.webui import plots


@pytest.fixture(params=ALL_MODELS)
def report(request) -> EvaluationReport:
    return EvaluationReport.read(BUNDLE / request.param)


@pytest.fixture
def reports() -> list[EvaluationReport]:
    return [EvaluationReport.read(BUNDLE / name) for name in ALL_MODELS]


def all_plots(report: EvaluationReport, reports: list[EvaluationReport]) -> list[Any]:
    figures = (
        plots.class_bars(report),
        plots.robustness_bars(report),
        plots.confusion_matrix(report),
        plots.calibration(report),
        plots.training_curves(report),
        plots.accuracy_coverage(reports),
        plots.accuracy_bars(reports),
    )
    return [figure for figure in figures if figure is not None]


def test_confusion_matrix_shows_counts_and_shares_of_the_true_class(report):
    (heatmap,) = plots.confusion_matrix(report).data
    matrix = report.confusion_matrix
    assert [list(row) for row in heatmap.text] == matrix
    for true in CLASSES:
        n = report.per_class[true.id].n
        assert sum(heatmap.z[true.id]) == pytest.approx(1)
        for predicted in CLASSES:
            count = matrix[true.id][predicted.id]
            assert heatmap.z[true.id][predicted.id] == count / n
            assert heatmap.hovertext[true.id][predicted.id] == (
                f"true {true.label}, predicted {predicted.label}:<br>"
                f"{count} of {n} images, {100 * count / n:.0f} %"
            )


def test_confusion_matrix_of_class_without_images_is_an_empty_row(report):
    empty = replace(report, confusion_matrix=[[0] * 10] * 10)
    (heatmap,) = plots.confusion_matrix(empty).data
    assert list(heatmap.z[3]) == [0] * 10 and heatmap.hovertext[3][4].endswith("0 of 0 images, 0 %")


def test_calibration_shows_every_bin_with_its_interval(report):
    figure = plots.calibration(report)
    (points,) = figure.data
    bins = report.calibration
    assert list(points.x) == [b.confidence for b in bins]
    assert list(points.y) == [b.accuracy for b in bins]
    for i, b in enumerate(bins):
        assert points.y[i] + points.error_y.array[i] == pytest.approx(b.high)
        assert points.y[i] - points.error_y.arrayminus[i] == pytest.approx(b.low)
        assert f"{b.n} images" in points.hovertext[i]
    error = report.metrics["expected_calibration_error"]
    text = figure.layout.annotations[0].text
    low, high = (f"{100 * bound:.1f}" for bound in (error.low, error.high))
    assert text == f"off by {100 * error.value:.1f} points ({low} to {high})"


def test_class_bars_show_the_recall_of_each_class_the_best_first(report):
    (bars,) = plots.class_bars(report).data
    recalls = {row.label: row.recall for row in report.per_class}
    assert dict(zip(bars.y, bars.x, strict=True)) == recalls
    assert list(bars.x) == sorted(bars.x, reverse=True)
    first = next(row for row in report.per_class if row.label == bars.y[0])
    assert bars.hovertext[0] == f"{first.label}: {first.recall_interval.percent()}, {first.n} images"


def test_robustness_bars_show_each_perturbation_beside_the_unaltered_images(report):
    figure = plots.robustness_bars(report)
    if report.model == ENSEMBLE:
        assert figure is None
        return
    (bars,) = figure.data
    assert dict(zip(bars.y, bars.x, strict=True)) == {k: v.value for k, v in report.robustness.items()}
    assert [line.x0 for line in figure.layout.shapes] == [report.by_views["1"].value]
    assert len(plots.robustness_bars(replace(report, by_views=None)).layout.shapes) == 0


def test_training_curves_show_the_history(report):
    if report.model == ENSEMBLE:
        pytest.skip("the ensemble is not trained")
    figure = plots.training_curves(report)
    history = report.training.history
    for curve, key in zip(figure.data, ("loss", "held_out_accuracy"), strict=True):
        assert list(curve.x) == [row.epoch for row in history]
        assert list(curve.y) == [getattr(row, key) for row in history]
    last = history[-1]
    expected = f"epoch {last.epoch}: held-out accuracy {100 * last.held_out_accuracy:.1f} %"
    assert figure.data[1].hovertext[-1] == expected


def test_accuracy_coverage_ends_at_the_accuracy_on_all_images(reports):
    curves = plots.accuracy_coverage(reports).data
    assert [curve.name for curve in curves] == list(map(model_title, ALL_MODELS))
    for curve, report in zip(curves, reports, strict=True):
        assert curve.x[-1] == 1
        assert curve.y[-1] == pytest.approx(report.accuracy.value, abs=1e-4)
        assert f"{report.n} images" in curve.hovertext[-1]


def test_accuracy_bars_show_intervals_the_original_project_and_baselines(reports):
    figure = plots.accuracy_bars(reports)
    measured, original = figure.data
    assert list(measured.y) == list(original.y) == list(ALL_MODELS)
    for i, report in enumerate(reports):
        accuracy = report.accuracy
        assert measured.x[i] == accuracy.value
        assert measured.x[i] + measured.error_x.array[i] == pytest.approx(accuracy.high)
        assert measured.x[i] - measured.error_x.arrayminus[i] == pytest.approx(accuracy.low)
    assert list(original.x) == [*(spec.reference_accuracy for spec in MODELS.values()), None]
    assert {shape.name: round(shape.x0, 3) for shape in figure.layout.shapes} == {
        "chance, 10 %": 0.1,
        "most frequent type, 14 %": 0.139,
    }


@pytest.mark.parametrize("names", [["ensemble"], ["resnet50"], ["ensemble", "pytorch-cnn"]])
def test_accuracy_bars_of_some_models_leave_room_for_the_highest(names):
    figure = plots.accuracy_bars([EvaluationReport.read(BUNDLE / name) for name in names])
    assert figure.layout.xaxis.range[1] > max(x for bar in figure.data for x in bar.x if x)


def test_plots_of_missing_parts_return_none(report):
    bare = replace(report, calibration=None, selective_risk=None, training=None)
    assert plots.calibration(bare) is None
    assert plots.training_curves(bare) is None
    assert plots.accuracy_coverage([bare]) is None
    assert plots.accuracy_coverage([]) is None
    assert plots.accuracy_bars([]) is None


def test_accuracy_coverage_with_one_report_that_lacks_it_shows_the_others(reports):
    reports[1] = replace(reports[1], selective_risk=None)
    curves = plots.accuracy_coverage(reports).data
    assert [curve.name for curve in curves] == [model_title(r.model) for r in reports if r.selective_risk]


def test_model_has_the_same_color_in_every_plot(reports):
    for curve, report in zip(plots.accuracy_coverage(reports).data, reports, strict=True):
        (points,) = plots.calibration(report).data
        assert curve.line.color == points.marker.color == plots.COLORS[report.model]
    assert len(set(plots.COLORS.values())) == len(ALL_MODELS)


def test_plots_are_transparent_take_the_width_of_the_page_and_load_nothing(report, reports):
    for figure in all_plots(report, reports):
        layout = figure.layout.template.layout
        assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0, 0, 0, 0)"
        assert figure.layout.width is None and figure.layout.title.text is None
        assert not re.search(r"https?://", figure.to_json())


def test_percentages_are_written_with_a_space(report, reports):
    for figure in all_plots(report, reports):
        assert not re.search(r"\d%", figure.to_json())
        assert "tickformat" not in figure.to_json()
