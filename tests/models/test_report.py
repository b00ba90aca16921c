"""evaluation.json as typed records."""

import json
import shutil
from dataclasses import replace

import pytest

from fracture_lib.errors import InvalidModel
from fracture_lib.hub import BUNDLE
from fracture_lib.models.report import EvaluationReport, Interval, OODReport, read_accuracy
from fracture_lib.registry import ALL_MODELS


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
    test = replace(bundled, test=None, deduplicated=replace(bundled, n=1))
    report = replace(bundled, test=test)
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


def test_read_accuracy_needs_only_the_accuracy():
    interval = {"value": 0.3, "low": 0.2, "high": 0.4}
    assert read_accuracy(json.dumps({"metrics": {"accuracy": interval}}).encode()) == Interval(**interval)
    for data in (b"", b"[]", b"{}", b'{"metrics": {"accuracy": 0.3}}', b"\xff"):
        assert read_accuracy(data) is None
