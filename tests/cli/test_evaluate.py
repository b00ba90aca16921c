"""`fracture evaluate`: the printed metrics, the JSON report and the stored test result."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps

from fracture_lib.cli import main
from fracture_lib.data.dataset import load_dataset_folder
from fracture_lib.data.duplicates import perceptual_hashes
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.evaluation.ensemble import write_out_of_fold
from fracture_lib.hub import BUNDLE
from fracture_lib.models.report import EvaluationReport

METRICS = {
    "accuracy",
    "top3_accuracy",
    "macro_f1",
    "balanced_accuracy",
    "macro_auroc",
    "negative_log_likelihood",
    "brier",
    "expected_calibration_error",
}


@pytest.fixture
def test_data(tmp_path, dataset_folder):
    """The training images and a split Test: two images, one of them a near-duplicate of a training image."""
    folder = shutil.copytree(dataset_folder, tmp_path / "data")
    (folder / "manifest.csv").unlink()
    split = folder / "Spiral fracture" / "Test"
    split.mkdir()
    shutil.copy(folder / "Spiral fracture" / "Train" / "0.png", split / "copy.png")
    synthetic_radiograph("Spiral", seed=99).rotate(45).save(split / "new.png")
    return folder


@pytest.fixture
def model_folder(tmp_path):
    return shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")


def evaluate(data, *arguments, model="pytorch-cnn"):
    return main(["evaluate", "--model", model, "--data", str(data), *map(str, arguments)])


def test_evaluate_prints_each_metric_with_its_interval(dataset_folder, capsys):
    assert evaluate(dataset_folder, "--split", "train") == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("pytorch-cnn: 40 images in 40 groups; ")
    assert {line.split()[0] for line in lines} == METRICS
    assert all(" (" in line and line.endswith(")") for line in lines)
    assert " % (" in lines[0] and "%" not in lines[-1]


def test_evaluate_with_out_writes_the_report_as_json_into_a_new_folder(dataset_folder, tmp_path):
    out = tmp_path / "new folder" / "report.json"
    assert evaluate(dataset_folder, "--split", "Train", "--out", out) == 0
    content = json.loads(out.read_text(encoding="utf-8"))
    report = EvaluationReport.from_dict(content)
    assert report.n == 40 and report.data.split == "Train" and set(report.metrics) == METRICS


def test_evaluate_without_near_duplicates_prints_and_writes_both_reports(test_data, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert evaluate(test_data, "--split", "Test", "--exclude-duplicates-of", "Train", "--out", out) == 0
    text = capsys.readouterr().out
    assert "pytorch-cnn: 2 images" in text and "pytorch-cnn: 1 images" in text
    assert "\nWithout near-duplicates of images in Train:\n" in text
    assert json.loads(out.read_text())["deduplicated"]["n"] == 1


def test_evaluate_with_a_missing_split_is_one_error_line(dataset_folder, capsys):
    assert evaluate(dataset_folder, "--split", "Test") == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "Expected <class>/<split>/image.jpg" in err


def test_evaluate_with_an_unknown_model_exits_with_two(dataset_folder, capsys):
    assert evaluate(dataset_folder, model="trained/pytorch-cnn") == 2
    assert 'Unknown model "trained/pytorch-cnn". Did you mean "pytorch-cnn"?' in capsys.readouterr().err


def test_evaluate_with_a_mistyped_dataset_never_asks_the_hub(hub, capsys):
    hub.requests.clear()
    assert evaluate("owner/name") == 1
    assert "There is no folder owner/name." in capsys.readouterr().err and hub.requests == []


def test_output_that_cannot_be_written_is_one_error_line_before_the_evaluation(
    dataset_folder, tmp_path, capsys
):
    (tmp_path / "file").write_text("in the way")
    assert evaluate(dataset_folder, "--out", tmp_path / "file" / "out.json") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_save_as_test_stores_the_report_and_rewrites_the_card(test_data, model_folder, capsys):
    before = EvaluationReport.read(model_folder)
    assert evaluate(test_data, "--split", "Test", "--save-as-test", model=f"local-dir:{model_folder}") == 0
    after = EvaluationReport.read(model_folder)
    assert after.test.n == 2 and after.test.protocol.startswith("the given model on the images of Test")
    assert len(after.test.checksum) == 64
    assert (after.metrics, after.training) == (before.metrics, before.training)
    card = (model_folder / "README.md").read_text(encoding="utf-8")
    assert after.test.accuracy.percent() in card
    assert f"Saved as the test result of {model_folder}.\n" in capsys.readouterr().out


@pytest.mark.parametrize("split", [["--split", "Train"], ["--split", "validation"], []], ids=str)
def test_save_as_test_without_a_test_split_exits_with_two_and_changes_nothing(
    test_data, model_folder, capsys, split
):
    before = (model_folder / "evaluation.json").read_bytes()
    assert evaluate(test_data, *split, "--save-as-test", model=f"local-dir:{model_folder}") == 2
    assert (model_folder / "evaluation.json").read_bytes() == before
    assert capsys.readouterr().err == "error: --save-as-test stores a test result. Add --split Test.\n"


def save_as_test(data, model_folder, split="Test"):
    """Return the exit code, and check that the model changed only if that is 0."""
    before = (model_folder / "evaluation.json").read_bytes()
    code = evaluate(data, "--split", split, "--save-as-test", model=f"local-dir:{model_folder}")
    assert ((model_folder / "evaluation.json").read_bytes() != before) == (code == 0)
    return code


def test_save_as_test_of_a_folder_without_splits_changes_nothing(test_data, model_folder, tmp_path, capsys):
    flat = shutil.copytree(test_data / "Spiral fracture" / "Test", tmp_path / "flat" / "Spiral").parent
    assert save_as_test(flat, model_folder) == 1
    assert "error: --save-as-test needs a split folder, and this dataset has none." in capsys.readouterr().err


@pytest.mark.parametrize("split", ["Test", "test", "TEST"])
def test_save_as_test_of_the_training_images_named_test_changes_nothing(
    dataset_folder, model_folder, tmp_path, capsys, split
):
    report = EvaluationReport.read(model_folder)
    fingerprint = load_dataset_folder(dataset_folder).fingerprint
    replace(report, data=replace(report.data, fingerprint=fingerprint)).write(model_folder)
    for folder in dataset_folder.iterdir():
        if folder.is_dir():
            shutil.copytree(folder / "Train", tmp_path / "data" / "test" / folder.name)
    assert save_as_test(tmp_path / "data", model_folder, split) == 1
    assert "error: The model was trained on these images, so" in capsys.readouterr().err


@pytest.fixture
def trained_folder(dataset_folder, model_folder):
    """A model folder that stores the hashes of the images in `dataset_folder`."""
    images = load_dataset_folder(dataset_folder)
    logits, indices = np.zeros((40, 10), np.float32), np.arange(40)
    write_out_of_fold(model_folder, logits, images, indices, perceptual_hashes(images.paths))
    return model_folder


def new_image(seed):
    """Return an image that is not a near-duplicate of those in `dataset_folder`."""
    blobs = np.random.default_rng(seed).integers(0, 255, (8, 8), np.uint8)
    return Image.fromarray(blobs).resize((96, 96), Image.Resampling.BICUBIC)


def as_test_split(images, folder):
    """Write images as <folder>/Test/Spiral/*.jpg and return the folder."""
    (folder / "Test" / "Spiral").mkdir(parents=True)
    for i, image in enumerate(images):
        image.convert("L").save(folder / "Test" / "Spiral" / f"{i}.jpg", quality=70)
    return folder


@pytest.mark.parametrize(
    "kind", ["subset", "superset", "half the size", "mirrored", "inverted", "other labels"]
)
def test_save_as_test_of_training_images_in_disguise_changes_nothing(
    dataset_folder, trained_folder, tmp_path, capsys, kind
):
    images = [Image.open(path) for path in load_dataset_folder(dataset_folder).paths[:8]]
    if kind == "superset":
        images += [new_image(i) for i in range(4)]
    if kind == "half the size":
        images = [image.resize((image.width // 2, image.height // 2)) for image in images]
    if kind == "mirrored":
        images = [ImageOps.mirror(image) for image in images]
    if kind == "inverted":
        images = [ImageOps.invert(image.convert("L")) for image in images]
    assert save_as_test(as_test_split(images, tmp_path / "data"), trained_folder) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith(f"error: 8 of {len(images)} images are near-duplicates of training images, so")


def test_save_as_test_with_few_known_images_counts_them_in_the_protocol(
    dataset_folder, trained_folder, tmp_path
):
    known = Image.open(load_dataset_folder(dataset_folder).paths[0])
    data = as_test_split([known, *(new_image(i) for i in range(4))], tmp_path / "data")
    assert save_as_test(data, trained_folder) == 0
    protocol = EvaluationReport.read(trained_folder).test.protocol
    assert protocol == (
        "the given model on the images of Test; 1 of 5 are near-duplicates of training images"
    )


def test_save_as_test_without_stored_hashes_compares_with_the_other_splits(test_data, model_folder, capsys):
    (test_data / "Spiral fracture" / "Test" / "new.png").unlink()
    write_out_of_fold(model_folder, np.zeros((2, 10)), load_dataset_folder(test_data), np.arange(2))
    assert save_as_test(test_data, model_folder) == 1
    assert "error: 1 of 1 images are near-duplicates of training images" in capsys.readouterr().err


@pytest.mark.parametrize("model", ["hf-hub:someone/evaluated", "pytorch-cnn", "ensemble"])
def test_save_as_test_with_a_model_on_the_hub_exits_with_two(test_data, hub, monkeypatch, capsys, model):
    sha = hub.add("someone/evaluated", BUNDLE / "pytorch-cnn")
    monkeypatch.setenv("FRACTURE_HUB_PYTORCH_CNN", f"someone/evaluated@{sha}")
    assert evaluate(test_data, "--split", "Test", "--save-as-test", model=model) == 2
    expected = f"error: --save-as-test needs a bundled or local model; {model} is on the Hub.\n"
    assert capsys.readouterr().err == expected


def test_save_as_test_with_a_configured_but_unreachable_hub_exits_with_two(test_data, monkeypatch, capsys):
    monkeypatch.setenv("FRACTURE_HUB_RESNET50", f"someone/nothing@{'1' * 40}")  # the bundle takes its place
    assert evaluate(test_data, "--split", "Test", "--save-as-test", model="resnet50") == 2
    assert "resnet50 is on the Hub." in capsys.readouterr().err
