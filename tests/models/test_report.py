"""evaluation.json as typed records."""

import hashlib
import json
import shutil
from dataclasses import replace

import pytest

from fracture_lib.errors import InvalidModel
from fracture_lib.hub import BUNDLE
from fracture_lib.models.report import (
    DetectorReport,
    DetectorThresholds,
    EvaluationReport,
    Interval,
    Localization,
    OODReport,
    OutcomeRates,
    SplitResult,
    ViewAccuracy,
    read_headline,
    store_test_result,
)
from fracture_lib.registry import ALL_MODELS, MODELS


@pytest.fixture
def model_folder(tmp_path):
    """A copy of a bundled model, to edit."""
    return shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")


def edit_report(folder, **entries):
    """Change entries of evaluation.json; None removes one."""
    path = folder / "evaluation.json"
    content = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize("name", ALL_MODELS)
def test_evaluation_report_written_and_read_again_is_equal(name, tmp_path):
    bundled = EvaluationReport.read(BUNDLE / name)
    rows = [replace(row, recall_interval=Interval(0.3, 0.2, 0.4)) for row in bundled.per_class]
    by_views = {"1": ViewAccuracy(0.3, 0.2, 0.4, 0.05)}
    deduplicated = replace(bundled, n=1, deduplicated=None)
    report = replace(bundled, per_class=rows, by_views=by_views, deduplicated=deduplicated)
    report.write(tmp_path)
    assert EvaluationReport.read(tmp_path) == report
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert EvaluationReport.from_dict(content | {"unknown": 1}) == report


def test_evaluation_report_as_dict_starts_with_the_model_and_omits_none():
    content = EvaluationReport.read(BUNDLE / "ensemble").to_dict()
    assert list(content)[:3] == ["model", "protocol", "n"]
    assert "training" not in content and "test" not in content


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"metrics": None}, r"^model/evaluation\.json lacks metrics; train the model again\.$"),
        ({"n": None, "per_class": None}, "lacks n, per_class;"),
        ({"n": True}, "n has an unexpected value"),
        ({"n": "many"}, r"^model/evaluation\.json: n has an unexpected value \('many'\); train the"),
        ({"metrics": {}}, "metrics lacks accuracy"),
        ({"metrics": {"accuracy": {"value": 0.3}}}, "metrics: accuracy lacks high, low;"),
        ({"metrics": {"accuracy": {"value": "0.3", "low": 0, "high": 1}}}, "accuracy: value has an unexp"),
        ({"data": []}, "data has an unexpected value"),
        ({"data": {"n_images": 3, "grouped_by": "source_group"}}, "data lacks fingerprint;"),
        ({"selective_risk": {"risk_coverage": [[0.5]], "accuracy_at": {}}}, "risk_coverage has an unexp"),
    ],
)
def test_evaluation_report_with_wrong_entry_names_file_and_key(model_folder, entries, message):
    edit_report(model_folder, **entries)
    with pytest.raises(InvalidModel, match=message):
        EvaluationReport.read(model_folder)


def test_evaluation_report_of_another_kind_of_file_raises_invalid_model(model_folder):
    for text in ("[]", "{", "null"):
        (model_folder / "evaluation.json").write_text(text)
        with pytest.raises(InvalidModel, match=r"model/evaluation\.json"):
            EvaluationReport.read(model_folder)


def test_evaluation_report_of_an_older_version_is_read(model_folder):
    content = json.loads((model_folder / "evaluation.json").read_text())
    for row in content["per_class"]:
        row.pop("recall_interval", None)
    training = {k: v for k, v in content["training"].items() if k not in ("minutes", "train_accuracy")}
    edit_report(model_folder, per_class=content["per_class"], training=training, by_views=None)
    report = EvaluationReport.read(model_folder)
    assert report.per_class[0].recall_interval is None and report.by_views is None
    assert report.training.minutes is report.training.train_accuracy is None


# Test results

TEST = SplitResult(140, {"accuracy": Interval(0.5, 0.4, 0.6)}, deduplicated=SplitResult(112, {}))


def test_store_test_result_keeps_it_with_the_checksum_of_the_weights(model_folder):
    before = EvaluationReport.read(model_folder)
    store_test_result(model_folder, TEST)
    after = EvaluationReport.read(model_folder)
    checksum = hashlib.sha256((model_folder / "model.onnx").read_bytes()).hexdigest()
    assert after == replace(before, test=replace(TEST, checksum=checksum))
    assert after.test.accuracy == Interval(0.5, 0.4, 0.6)


def test_test_result_of_other_weights_is_not_read(model_folder):
    store_test_result(model_folder, TEST)
    graph = model_folder / "model.onnx"
    data = graph.read_bytes()
    graph.write_bytes(data + b"trained again")
    assert EvaluationReport.read(model_folder).test is None
    graph.write_bytes(data)
    assert EvaluationReport.read(model_folder).test is not None
    graph.unlink()
    assert EvaluationReport.read(model_folder).test is None


def test_test_result_without_checksum_is_not_read(model_folder):
    replace(EvaluationReport.read(model_folder), test=TEST).write(model_folder)
    assert EvaluationReport.read(model_folder).test is None


def test_store_test_result_without_weights_raises_invalid_model(model_folder):
    (model_folder / "model.onnx").unlink()
    with pytest.raises(InvalidModel, match=r"model has no model\.onnx"):
        store_test_result(model_folder, TEST)


@pytest.fixture
def ensemble_folder(tmp_path):
    """A copy of the ensemble's report, beside stand-ins for its members' graphs."""
    for name in MODELS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_bytes(name.encode())
    return shutil.copytree(BUNDLE / "ensemble", tmp_path / "ensemble")


def test_test_result_of_an_ensemble_holds_for_its_weights_and_members(ensemble_folder):
    store_test_result(ensemble_folder, TEST)
    report = EvaluationReport.read(ensemble_folder)
    assert report.test.n == 140
    first = next(iter(report.weights))
    replace(report, weights=report.weights | {first: 0.9}).write(ensemble_folder)
    assert EvaluationReport.read(ensemble_folder).test is None
    report.write(ensemble_folder)
    assert EvaluationReport.read(ensemble_folder).test.n == 140
    (ensemble_folder.parent / "resnet50" / "model.onnx").write_bytes(b"another")
    assert EvaluationReport.read(ensemble_folder).test is None


# The detectors


def test_detector_report_written_and_read_again_is_equal(tmp_path):
    interval = Interval(0.9, 0.8, 0.95)
    report = DetectorReport(
        protocol="by hand",
        n=10,
        n_groups=5,
        n_fractured=3,
        metrics={"auroc": interval},
        slope=1.5,
        intercept=-0.5,
        thresholds=DetectorThresholds(visible=0.6, none=0.1),
        outcomes={"fractured": OutcomeRates(3, 0.7, 0.2, 0.1)},
        missed=interval,
        external={"all": OutcomeRates(4, 0.5, 0.25, 0.25)},
        localization={"fracture-detector": Localization(3, *[interval] * 6)},
        training_minutes=12.5,
    )
    report.write(tmp_path)
    assert DetectorReport.read(tmp_path) == report


def test_ood_report_written_and_read_again_is_equal(tmp_path):
    report = OODReport.read(BUNDLE / "ood")
    report.write(tmp_path)
    assert OODReport.read(tmp_path) == report
    assert json.loads((tmp_path / "evaluation.json").read_text()) == json.loads(
        (BUNDLE / "ood" / "evaluation.json").read_text()
    )


def test_interval_formats_percent_plain_and_undefined():
    interval = Interval(0.3519, 0.3134, 0.3901)
    assert interval.percent() == "35.2 % (31.3 to 39.0)"
    assert interval.plain() == "0.352 (0.313 to 0.390)"
    assert Interval(None, None, None).percent() == Interval(None, None, None).plain() == "undefined"
    assert Interval(0.5, None, None).percent() == "50.0 %"


def test_read_headline_needs_only_the_accuracy_or_auroc():
    interval = {"value": 0.3, "low": 0.2, "high": 0.4}
    for name, title in (("accuracy", "accuracy"), ("auroc", "AUROC")):
        data = json.dumps({"metrics": {"other": 1, name: interval}}).encode()
        assert read_headline(data) == (title, Interval(**interval))
    for data in (b"", b"[]", b"{}", b'{"metrics": {}}', b'{"metrics": {"accuracy": 0.3}}', b"\xff"):
        assert read_headline(data) is None
