"""`fracture push`: the arguments and what is printed; tests/publishing tests the pushes themselves."""

import shutil
from dataclasses import replace

import pytest

from fracture_lib.cli import main
from fracture_lib.hub import BUNDLE
from fracture_lib.models.report import EvaluationReport, Interval


def push(kind, repo, *arguments):
    return main(["push", kind, "--repo", repo, *map(str, arguments)])


@pytest.fixture
def model_folder(tmp_path):
    """A trained model in a folder outside the bundle; its accuracy is 1."""
    folder = shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")
    report = EvaluationReport.read(folder)
    metrics = {**report.metrics, "accuracy": Interval(1.0, 1.0, 1.0)}
    replace(report, metrics=metrics).write(folder)
    return folder


def test_push_model_with_dry_run_lists_the_changes_and_sends_nothing(hub, capsys):
    hub.requests.clear()
    assert push("model", "someone/dry", "--folder", "pytorch-cnn", "--private", "--dry-run") == 0
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first == "create the private model someone/dry"
    assert any(line.endswith("  model.onnx") for line in lines) and last == "Dry run: nothing was sent."
    assert {method for method, _ in hub.requests} <= {"GET", "HEAD"}
    assert ("models", "someone/dry") not in hub.repositories


def test_push_model_with_a_folder_pushes_it_and_prints_the_url(hub, model_folder, capsys):
    assert push("model", "someone/cli-model", "--folder", model_folder, "--private") == 0
    repository = hub.repositories["models", "someone/cli-model"]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"Pushed: {hub.address}/someone/cli-model/commit/{repository.refs['main']}"
    assert repository.private and {"model.onnx", "README.md"} < hub.files("someone/cli-model").keys()


def test_push_model_keeps_a_better_one_unless_forced(hub, model_folder, capsys):
    assert push("model", "someone/cli-better", "--folder", model_folder) == 0
    before = hub.files("someone/cli-better")
    assert push("model", "someone/cli-better", "--folder", "pytorch-cnn") == 1
    assert "--force" in capsys.readouterr().err and hub.files("someone/cli-better") == before
    assert push("model", "someone/cli-better", "--folder", "pytorch-cnn", "--force") == 0
    assert hub.files("someone/cli-better") != before


def test_push_model_with_create_pr_leaves_the_main_branch(hub, model_folder, capsys):
    assert push("model", "someone/cli-pr", "--folder", model_folder) == 0
    before = hub.files("someone/cli-pr")
    assert push("model", "someone/cli-pr", "--folder", model_folder, "--create-pr") == 0
    url = f"{hub.address}/someone/cli-pr/discussions/1"
    assert capsys.readouterr().out.splitlines()[-1] == f"Pushed: {url}"
    assert hub.files("someone/cli-pr") == before
    assert "refs/pr/1" in hub.repositories["models", "someone/cli-pr"].refs


@pytest.mark.parametrize("folder", ["no/such/folder", "resnet", "hf-hub:owner/name"])
def test_push_model_with_a_missing_folder_never_asks_the_hub(hub, capsys, folder):
    hub.requests.clear()
    assert push("model", "someone/cli-none", "--folder", folder) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "There is no folder" in err and hub.requests == []


def test_push_dataset_pushes_grouped_splits(hub, dataset_folder, capsys):
    repo = "someone/cli-dataset"
    assert push("dataset", repo, "--data", dataset_folder, "--split", "Train", "--n-folds", "4") == 0
    assert {"data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet", "README.md"} < (
        hub.files(repo, kind="datasets").keys()
    )
    assert capsys.readouterr().out.splitlines()[-1].startswith("Pushed: ")


def test_push_dataset_with_too_many_folds_exits_with_two(hub, dataset_folder, capsys):
    assert push("dataset", "someone/cli-folds", "--data", dataset_folder, "--n-folds", "400") == 2
    assert capsys.readouterr().err == "error: n_folds is 400; these images allow 2 to 4.\n"


def test_push_space_pushes_the_page_and_sets_its_variables(hub):
    sha = hub.add("someone/cli-served", BUNDLE / "pytorch-cnn")
    pin = f"someone/cli-served@{sha}"
    assert push("space", "someone/cli-space", "--models", pin, "--datasets", "someone/data") == 0
    space = hub.repositories["spaces", "someone/cli-space"]
    assert space.variables == {"FRACTURE_HUB_PYTORCH_CNN": pin}
    assert {"app.py", "requirements.txt", "README.md"} < hub.files("someone/cli-space", kind="spaces").keys()


def test_push_space_takes_hardware_and_all_requirements(hub):
    assert push("space", "someone/cli-full", "--full", "--hardware", "cpu-upgrade") == 0
    assert hub.repositories["spaces", "someone/cli-full"].hardware == "cpu-upgrade"
    assert b"\ntorch==" in hub.files("someone/cli-full", kind="spaces")["requirements.txt"]


@pytest.mark.parametrize("hardware", [[], ["--hardware", "zero-a10g"]])
def test_push_space_with_all_requirements_on_zero_gpu_exits_with_two(hub, capsys, hardware):
    hub.requests.clear()
    assert push("space", "someone/cli-full-zero", "--full", *hardware) == 2
    assert capsys.readouterr().err.startswith("error: ZeroGPU cannot run the version of PyTorch")
    assert hub.requests == []


def test_push_space_with_create_pr_prints_the_variables_instead(hub, capsys):
    sha = hub.add("someone/cli-served", BUNDLE / "pytorch-cnn")
    pin = f"someone/cli-served@{sha}"
    assert push("space", "someone/cli-space-pr", "--models", pin, "--create-pr") == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "After the pull request is merged, set these variables of the Space:",
        f"  FRACTURE_HUB_PYTORCH_CNN={pin}",
    ]
    assert hub.repositories["spaces", "someone/cli-space-pr"].variables == {}


def test_push_space_with_dry_run_sends_nothing(hub, capsys):
    assert push("space", "someone/cli-space-dry", "--dry-run") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Dry run: nothing was sent."
    assert ("spaces", "someone/cli-space-dry") not in hub.repositories


def test_push_to_a_malformed_repository_is_one_error_line(hub, capsys):
    assert push("model", "name", "--folder", "pytorch-cnn") == 1
    assert capsys.readouterr().err.startswith('error: "name" is not a repository.')
