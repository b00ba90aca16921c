"""`fracture pretrain`, `train` and `ensemble`: the arguments, the summary and the card."""

import json
import shutil
from pathlib import Path

import pytest

import fracture_lib
from fracture_lib.cli import main
from fracture_lib.hub import BUNDLE
from fracture_lib.models.report import EvaluationReport
from fracture_lib.registry import MODELS
from fracture_lib.training.recipes import RECIPES


@pytest.fixture
def training_calls(monkeypatch):
    """Replace the training with a copy of the bundled model; return the calls."""
    calls = []

    def train(name, data, out, **options):
        calls.append((name, data, out, options))
        shutil.copytree(BUNDLE / name, out)
        (out / "README.md").unlink()
        return EvaluationReport.read(out)

    monkeypatch.setattr("fracture_lib.training.trainer.train", train)
    return calls


def train(*arguments, model="pytorch-cnn"):
    return main(["train", "--model", model, *map(str, arguments)])


@pytest.mark.slow
def test_train_writes_a_model_that_predicts_and_its_card(dataset_folder, tmp_path, image_path, capsys):
    out = tmp_path / "model"
    options = ["--epochs", "1", "--n-folds", "3", "--n-measured-folds", "1"]
    assert train("--data", dataset_folder, "--out", out, *options) == 0
    text = capsys.readouterr().out
    assert text.startswith("pytorch-cnn: ") and "\n  accuracy " in text
    assert text.endswith(f"\nWrote the model to {out} and its card to {out / 'README.md'}.\n")
    report = EvaluationReport.read(out)
    assert (report.training.n_folds, report.training.n_measured_folds) == (3, 1)
    assert json.loads((out / "config.json").read_text())["recipe"]["epochs"] == 1
    assert "Not a medical device" in (out / "README.md").read_text(encoding="utf-8")
    assert fracture_lib.load_model(out).predict(image_path).model == "pytorch-cnn"


def test_train_without_options_uses_the_defaults_and_the_recipe(training_calls, tmp_path):
    assert train("--data", "hf-hub:owner/name", "--out", tmp_path / "out", model="tensorflow-cnn") == 0
    defaults = {"split": "Train", "n_folds": 5, "n_measured_folds": None, "seed": 0, "pretrained": None}
    defaults |= {"pretrain_on": None, "keep_checkpoints": False}
    options = {**defaults, "recipe": RECIPES["tensorflow-cnn"]}
    assert training_calls == [("tensorflow-cnn", "hf-hub:owner/name", tmp_path / "out", options)]


def test_train_with_options_passes_them_on(training_calls, tmp_path):
    options = ["--split", "all", "--n-folds", "4", "--n-measured-folds", "2", "--seed", "7", "--epochs", "9"]
    pretrained = ["--pretrained", "weights.safetensors", "--pretrain-on", "F", "--keep-checkpoints"]
    assert train("--data", "D", "--out", tmp_path / "out", *options, *pretrained, model="resnet50") == 0
    _, data, _, passed = training_calls[0]
    assert data == "D" and passed["recipe"].epochs == 9
    assert [passed[key] for key in ("split", "n_folds", "n_measured_folds", "seed")] == ["all", 4, 2, 7]
    assert (passed["pretrained"], passed["pretrain_on"]) == ("weights.safetensors", "F")
    assert passed["keep_checkpoints"] is True


@pytest.mark.parametrize("option", ["--epochs", "--n-folds", "--n-measured-folds"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many"])
def test_train_with_a_number_below_one_exits_with_two(capsys, option, value):
    with pytest.raises(SystemExit) as stop:
        train("--data", "D", "--out", "O", f"{option}={value}")
    assert stop.value.code == 2
    assert f'argument {option}: "{value}" is not a whole number above 0.' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n-folds", "400"], "n_folds is 400; these images allow 2 to 4."),
        (["--n-measured-folds", "6"], "n_measured_folds is 6; use 1 to n_folds, which is 5."),
    ],
)
def test_train_with_impossible_folds_exits_with_two(dataset_folder, tmp_path, capsys, options, message):
    assert train("--data", dataset_folder, "--out", tmp_path / "out", *options) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_pretrain_passes_its_options_on_and_names_the_file(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("fracture_lib.training.pretrain.pretrain", lambda *a: calls.append(a))
    options = ["--model", "resnet50", "--data", "F", "--out", "new/resnet50.safetensors"]
    assert main(["pretrain", *options]) == 0
    assert main(["pretrain", *options, "--pretrained", "hf-hub:owner/name", "--seed", "3"]) == 0
    out = Path("new/resnet50.safetensors")
    assert calls == [("resnet50", "F", out, None, 0), ("resnet50", "F", out, "hf-hub:owner/name", 3)]
    assert capsys.readouterr().out == f"Wrote the pretrained layers to {out}.\n" * 2


def test_pretrain_without_manifest_is_one_error_line(tmp_path, capsys):
    options = ["--data", str(tmp_path), "--out", str(tmp_path / "cnn.safetensors")]
    assert main(["pretrain", "--model", "pytorch-cnn", *options]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {tmp_path / 'manifest.csv'} cannot be read: ")


def test_train_with_missing_weights_is_one_error_line(dataset_folder, tmp_path, capsys):
    options = ["--n-folds", "4", "--pretrained", "owner/name"]
    assert train("--data", dataset_folder, "--out", tmp_path / "out", *options, model="resnet50") == 1
    assert capsys.readouterr().err.startswith(
        "error: There is no file owner/name. Give a safetensors file or"
    )


def test_train_into_a_folder_that_cannot_be_created_is_one_error_line(dataset_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert train("--data", dataset_folder, "--out", tmp_path / "file" / "out", "--n-folds", "4") == 1
    err = capsys.readouterr().err
    assert err.splitlines()[-1].startswith("error: ") and "Traceback" not in err


@pytest.mark.slow
def test_ensemble_prints_the_metrics_and_the_weights_and_writes_the_report(tmp_path, capsys):
    folders = [str(BUNDLE / name) for name in MODELS]
    assert main(["ensemble", "--models", *folders, "--out", str(tmp_path / "ensemble")]) == 0
    text = capsys.readouterr().out
    report = EvaluationReport.read(tmp_path / "ensemble")
    assert set(report.weights) == set(MODELS)
    assert text.startswith(f"ensemble: {report.n} images in {report.n_groups} groups; ")
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in report.weights.items())
    *_, weights_line, _, last = text.splitlines()
    assert weights_line == f"  weights                     {weights}"
    assert last == f"Wrote the report to {tmp_path / 'ensemble' / 'evaluation.json'}."


def test_ensemble_with_a_name_instead_of_a_folder_is_one_error_line(tmp_path, capsys):
    assert main(["ensemble", "--models", "resnet50", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: resnet50 has no readable out_of_fold.safetensors")


def test_ensemble_of_the_same_model_twice_is_one_error_line(tmp_path, capsys):
    folder = str(BUNDLE / "pytorch-cnn")
    assert main(["ensemble", "--models", folder, folder, "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "error: pytorch-cnn is given more than once. Give each model once.\n"


def test_remeasure_prints_and_rewrites_the_report(tmp_path, capsys):
    folder = shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")
    before = (folder / "evaluation.json").read_text()
    assert main(["remeasure", str(folder)]) == 0
    assert (folder / "evaluation.json").read_text() == before
    assert "pytorch-cnn: 989 images" in capsys.readouterr().out
