"""Pushing to a Hub on loopback with the real client, and other libraries reading what was pushed."""

import json
import shutil

import datasets
import numpy as np
import pytest
from gradio_client import Client, handle_file
from huggingface_hub import DatasetCard, HfApi, ModelCard, RepoCard

import fracture_lib
from fracture_lib.data.dataset import load_dataset_folder
from fracture_lib.errors import InvalidArgument, InvalidData, InvalidModel, PushError
from fracture_lib.hub import BUNDLE, NOT_SERVED, resolve_model
from fracture_lib.labels import CLASSES
from fracture_lib.models.model import read_model
from fracture_lib.models.report import DetectorReport, EvaluationReport
from fracture_lib.publishing import cards
from fracture_lib.publishing.push import (
    collect_dataset_files,
    collect_model_files,
    collect_space_files,
    push_to_hub,
    set_space_variables,
    variables_for,
)
from fracture_lib.registry import ALL_MODELS, DETECTOR, MODELS
from tests.helpers.app_runner import running_app
from tests.helpers.zero_gpu import zero_gpu

ZERO_GPU_PYTHONS = ("3.10.13", "3.12.12")
NOT_INSTALLED = ("torch", "tensorflow", "keras", "transformers", "datasets", "scipy", "sklearn")
SERVED_FILES = [
    "config.json",
    "preprocessor_config.json",
    "evaluation.json",
    "head.safetensors",
    "model.onnx",
]


def push_model(folder, repo, **options):
    return push_to_hub(collect_model_files(folder, repo), repo, **options)


def copy_model(folder, accuracy):
    """Copy the bundled pytorch-cnn with another accuracy in its report; return the folder."""
    shutil.copytree(BUNDLE / "pytorch-cnn", folder)
    report = json.loads((folder / "evaluation.json").read_text())
    report["metrics"]["accuracy"]["value"] = accuracy
    (folder / "evaluation.json").write_text(json.dumps(report))
    return folder


@pytest.fixture(params=MODELS)
def pushed(request, hub):
    """(name, repository) of each bundled model, pushed."""
    repo = f"someone/pushed-{request.param}"
    if ("models", repo) not in hub.repositories:
        push_model(BUNDLE / request.param, repo)
    return request.param, repo


# Models


def test_push_model_makes_one_commit_of_all_its_files(hub, pushed):
    name, repo = pushed
    weights = "model.safetensors" if MODELS[name].framework == "pytorch" else "model.keras"
    files = hub.files(repo)
    others = {weights, "out_of_fold.safetensors", "README.md", "synthetic-spiral.png"}
    assert files.keys() - {".gitattributes"} == {*SERVED_FILES, *others}
    for file in (*SERVED_FILES, weights):
        assert files[file] == (BUNDLE / name / file).read_bytes()
    assert len(hub.repositories["models", repo].commits) == 2, "the empty repository and one commit"


def test_push_model_writes_a_valid_card_for_the_repository(pushed):
    name, repo = pushed
    card = ModelCard.load(repo)
    card.validate()
    assert f'load_model("hf-hub:{repo}")' in card.text and repo in card.data.widget[0]["src"]
    assert card.data.library_name == MODELS[name].library_name


def test_pushed_model_loads_from_the_hub(pushed, pixels):
    name, repo = pushed
    model = read_model(f"hf-hub:{repo}")
    assert (model.name, model.source.kind, model.source.repo) == (name, "hub", repo)
    np.testing.assert_array_equal(model.predict_proba(pixels), read_model(name).predict_proba(pixels))


def test_push_dry_run_lists_the_files_and_sends_nothing(hub):
    hub.requests.clear()
    url, messages = push_model(BUNDLE / "pytorch-cnn", "someone/dry", private=True, dry_run=True)
    assert url is None and messages[0] == "create the private model someone/dry"
    assert any(line.endswith("  model.onnx") for line in messages)
    assert messages[-1].endswith("the repository has no measured model yet")
    assert {method for method, _ in hub.requests} == {"GET"}
    assert ("models", "someone/dry") not in hub.repositories


def test_push_returns_the_commits_url_and_messages(hub):
    repo = "someone/messages"
    url, messages = push_model(BUNDLE / "pytorch-cnn", repo)
    sha = hub.repositories["models", repo].refs["main"]
    assert sha in url and messages[0] == f"create the model {repo}" and messages[-1] == f"commit {sha}"
    _, messages = push_model(BUNDLE / "pytorch-cnn", repo)
    assert messages[0] == f"update the model {repo}"
    accuracy = EvaluationReport.read(BUNDLE / "pytorch-cnn").accuracy.percent()
    assert f"accuracy {accuracy}; the model in the repository has {accuracy}" in messages


def test_push_private_creates_a_private_repository(hub):
    push_model(BUNDLE / "pytorch-cnn", "someone/private", private=True)
    assert hub.repositories["models", "someone/private"].private


def test_push_as_pull_request_leaves_the_main_branch(hub, tmp_path):
    repo = "someone/proposed"
    push_model(BUNDLE / "pytorch-cnn", repo)
    before = hub.files(repo)
    url, messages = push_model(copy_model(tmp_path / "better", 0.9), repo, create_pr=True)
    assert "discussions/1" in url and messages[0] == f"update the model {repo} by a pull request"
    assert hub.files(repo) == before
    assert b'"value": 0.9' in hub.files(repo, "refs/pr/1")["evaluation.json"]


def test_push_over_a_better_model_needs_force(hub, tmp_path):
    repo = "someone/better"
    hub.add(repo, BUNDLE / "pytorch-cnn")
    before = hub.files(repo)
    worse = copy_model(tmp_path / "worse", 0.2)
    with pytest.raises(PushError, match=r"holds a better model.* Nothing was changed\. Use --force"):
        push_model(worse, repo)
    assert hub.files(repo) == before
    push_model(worse, repo, force=True)
    assert b'"value": 0.2' in hub.files(repo)["evaluation.json"]


def test_push_over_a_better_model_of_an_older_version_needs_force(hub):
    """Its report lacks keys that this version requires, but has the accuracy."""
    repo = "someone/older"
    metrics = {"accuracy": {"value": 0.9, "low": 0.8, "high": 1.0}}
    hub.add(repo, {"evaluation.json": json.dumps({"metrics": metrics}).encode()})
    with pytest.raises(PushError, match=r"90\.0 %"):
        push_model(BUNDLE / "pytorch-cnn", repo)


@pytest.mark.parametrize("content", [b"{}", b"not JSON"], ids=["no accuracy", "not JSON"])
def test_push_over_a_report_without_accuracy_replaces_it(hub, content):
    repo = f"someone/report-{len(content)}"
    hub.add(repo, {"evaluation.json": content})
    push_model(BUNDLE / "pytorch-cnn", repo)
    assert hub.files(repo)["evaluation.json"] == (BUNDLE / "pytorch-cnn" / "evaluation.json").read_bytes()


def test_push_of_another_framework_deletes_the_old_weights_only(hub):
    repo = "someone/changed"
    hub.add(repo, {"notes.txt": b"mine"})
    hub.add(repo, BUNDLE / "pytorch-cnn")
    _, messages = push_model(BUNDLE / "resnet50", repo)
    files = hub.files(repo)
    assert "model.keras" in files and "model.safetensors" not in files and files["notes.txt"] == b"mine"
    assert f"  {'deleted':>12}  model.safetensors" in messages


def test_push_writes_to_no_other_repository(hub):
    hub.requests.clear()
    push_model(BUNDLE / "pytorch-cnn", "someone/alone")
    written = [path for method, path in hub.requests if method != "GET" and path.startswith("/api/models/")]
    assert written and all("someone/alone" in path for path in written)
    assert HfApi().model_info("someone/alone").sha == hub.repositories["models", "someone/alone"].refs["main"]


@pytest.mark.parametrize(
    ("method", "path", "status", "advice"),
    [
        ("PUT", "/lfs/", 403, "Use a token with write access"),
        ("POST", "/preupload/", 401, "set HF_TOKEN"),
        ("POST", "/commit/", 412, "Someone else pushed to it meanwhile"),
        ("POST", "/commit/", 500, "Try again later"),
    ],
)
def test_failed_push_changes_no_file_and_advises(hub, method, path, status, advice):
    repo = f"someone/failed-{status}"
    hub.add(repo, {"config.json": b"{}"})
    before = hub.files(repo)
    hub.uploads.clear()
    hub.fail(method, path, status=status, times=100)
    with pytest.raises(PushError) as caught:
        push_model(BUNDLE / "pytorch-cnn", repo)
    message = str(caught.value)
    assert message.startswith(f"Cannot push to {repo}: ") and "\n" not in message and ".." not in message
    assert " No file was changed. " in message and advice in message
    assert hub.files(repo) == before


def test_push_to_unreadable_repository_changes_nothing(hub):
    hub.fail("GET", "/api/models/someone/unreadable", status=500, times=100)
    with pytest.raises(PushError, match=r"Cannot read someone/unreadable on the Hub: .* Nothing was changed"):
        push_model(BUNDLE / "pytorch-cnn", "someone/unreadable")


def test_push_whose_old_report_cannot_be_read_changes_nothing(hub):
    repo = "someone/unknown-accuracy"
    hub.add(repo, BUNDLE / "pytorch-cnn")
    hub.fail("GET", r"/resolve/.*evaluation\.json", status=500, times=100)
    with pytest.raises(PushError, match=r"Cannot read the accuracy of the model .* Nothing was changed"):
        push_model(BUNDLE / "tensorflow-cnn", repo)
    assert len(hub.repositories["models", repo].commits) == 1


def test_push_without_login_says_how_to_log_in(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(PushError, match="hf auth login"):
        push_model(BUNDLE / "pytorch-cnn", "someone/logged-out")


@pytest.mark.parametrize("repo", ["a", "a/b/c", "someone/a@main", "hf-hub:someone/a", ""])
def test_push_to_invalid_repository_name_says_how_to_write_it(repo):
    with pytest.raises(
        PushError, match=r'is not a repository\. Nothing was changed\. Write it as "owner/name"'
    ):
        push_to_hub({}, repo)


@pytest.mark.parametrize("missing", ["config.json", "model.onnx", "head.safetensors", "evaluation.json"])
def test_collect_model_files_of_incomplete_folder_names_the_file(tmp_path, missing):
    folder = shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")
    (folder / missing).unlink()
    with pytest.raises(InvalidModel, match=missing):
        collect_model_files(folder, "someone/a")


def test_collect_model_files_of_a_missing_folder_names_it(tmp_path):
    with pytest.raises(InvalidModel, match=r"There is no folder .*absent\. Check the path\."):
        collect_model_files(tmp_path / "absent", "someone/a")


def test_collect_model_files_without_native_weights_raises_invalid_model(tmp_path):
    folder = shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InvalidModel, match="no native weights to publish"):
        collect_model_files(folder, "someone/a")


def test_collect_model_files_leaves_out_what_is_not_the_models(tmp_path):
    folder = shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")
    (folder / "checkpoints").mkdir()
    (folder / "notes.txt").write_text("mine")
    assert (
        collect_model_files(folder, "a/b").keys() == collect_model_files(BUNDLE / "pytorch-cnn", "a/b").keys()
    )


def test_push_detector_sends_its_files_and_compares_the_auroc(hub):
    repo, folder = "someone/detector", BUNDLE / DETECTOR
    _, messages = push_model(folder, repo)
    auroc = DetectorReport.read(folder).metrics["auroc"].percent()
    assert f"AUROC {auroc}; the repository has no measured model yet" in messages
    files = hub.files(repo)
    assert files.keys() - {".gitattributes"} == {"config.json", "model.onnx", "evaluation.json", "README.md"}
    assert f'hf_hub_download("{repo}", "model.onnx")' in ModelCard.load(repo).text
    _, messages = push_model(folder, repo)
    assert f"AUROC {auroc}; the model in the repository has {auroc}" in messages


def test_collect_model_files_of_incomplete_detector_names_the_file(tmp_path):
    folder = shutil.copytree(BUNDLE / DETECTOR, tmp_path / "detector")
    (folder / "model.onnx").unlink()
    with pytest.raises(InvalidModel, match=r"detector lacks model\.onnx; train the detector again"):
        collect_model_files(folder, "someone/a")


@pytest.mark.slow
def test_transformers_auto_classes_load_and_push_the_model(hub, pixels):
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    fracture_lib.register_auto_classes()
    repo, folder = "someone/pushed-by-transformers", str(BUNDLE / "pytorch-cnn")
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    assert model.config.id2label == {c.id: c.label for c in CLASSES}
    model.push_to_hub(repo)
    AutoImageProcessor.from_pretrained(folder).push_to_hub(repo)
    again = type(model).from_pretrained(repo).eval()
    with torch.no_grad():
        output = again(torch.from_numpy(pixels), labels=torch.zeros(len(pixels), dtype=torch.long))
    expected = read_model("pytorch-cnn").predict_proba(pixels)
    np.testing.assert_allclose(output.logits.softmax(1).numpy(), expected, atol=1e-4)
    assert output.loss.item() == pytest.approx(-np.log(expected[:, 0]).mean(), abs=1e-3)


# Datasets


@pytest.fixture(scope="module")
def pushed_dataset(dataset_folder, tmp_path_factory):
    """The name of a Hub dataset of `dataset_folder`, with four folds."""
    repo, shards = "someone/radiographs", tmp_path_factory.mktemp("shards")
    push_to_hub(collect_dataset_files(load_dataset_folder(dataset_folder), shards, 4), repo, "dataset")
    return repo


def test_pushed_dataset_loads_as_the_same_images(hub, pushed_dataset, dataset_folder):
    images, loaded = load_dataset_folder(dataset_folder), load_dataset_folder(f"hf-hub:{pushed_dataset}")
    assert loaded.fingerprint == images.fingerprint and loaded.grouped_by == "source_group"
    assert loaded.hub == pushed_dataset and images.hub is None
    assert len(hub.repositories["datasets", pushed_dataset].commits) == 2


def test_pushed_dataset_has_splits_and_folds_that_keep_groups_whole(pushed_dataset):
    rows = datasets.load_dataset(pushed_dataset)
    assert {split: len(part) for split, part in rows.items()} == {"train": 30, "validation": 10}
    groups = {split: set(part["source_group"]) for split, part in rows.items()}
    assert not groups["train"] & groups["validation"]
    assert set(rows["train"]["fold"]) == {1, 2, 3} and set(rows["validation"]["fold"]) == {0}
    assert rows["train"].features["label"].names == [c.label for c in CLASSES]


def test_pushed_dataset_has_a_card(pushed_dataset, dataset_folder):
    card = DatasetCard.load(pushed_dataset)
    assert card.data.task_categories == ["image-classification"]
    assert load_dataset_folder(dataset_folder).fingerprint in card.text


def test_push_dataset_deletes_the_parquet_files_of_an_earlier_push(hub, dataset_folder, tmp_path):
    repo = "someone/smaller"
    hub.add(repo, {"data/train-00001-of-00002.parquet": b"old", "notes.md": b"mine"}, kind="datasets")
    push_to_hub(collect_dataset_files(load_dataset_folder(dataset_folder), tmp_path, 4), repo, "dataset")
    assert set(hub.files(repo, kind="datasets")) == {
        "README.md",
        "notes.md",
        "data/train-00000-of-00001.parquet",
        "data/validation-00000-of-00001.parquet",
    }


def test_pushed_dataset_in_several_shards_loads_as_the_same_images(
    hub, dataset_folder, tmp_path, monkeypatch
):
    images = load_dataset_folder(dataset_folder)
    total = sum(path.stat().st_size for path in images.paths)
    monkeypatch.setattr("fracture_lib.publishing.push.SHARD_SIZE", total // 4)
    files = collect_dataset_files(images, tmp_path, 4)
    assert [name for name in files if "train" in name] == [
        f"data/train-0000{shard}-of-00004.parquet" for shard in range(4)
    ]
    push_to_hub(files, "someone/shards", "dataset")
    assert load_dataset_folder("hf-hub:someone/shards").fingerprint == images.fingerprint


def test_collect_dataset_files_with_too_many_folds_raises_invalid_argument(dataset_folder, tmp_path):
    with pytest.raises(InvalidArgument, match="n_folds is 100"):
        collect_dataset_files(load_dataset_folder(dataset_folder), tmp_path, 100)


# The Space


def test_collect_space_files_are_what_the_page_needs():
    files = collect_space_files("someone/space")
    assert {"app.py", "requirements.txt", "model_card.md", "LICENSE", "README.md"} <= files.keys()
    assert {"fracture_lib/webui/style.css", "fracture_lib/bundle/ood/evaluation.json"} <= files.keys()
    assert "docs/single-xray.png" in files
    for path in files:
        assert not path.startswith("tests/") and "__pycache__" not in path
        assert path.rpartition("/")[2] not in NOT_SERVED


def test_collect_space_files_with_a_wrong_dataset_names_it():
    with pytest.raises(InvalidArgument, match='"x" is not a dataset'):
        collect_space_files("owner/space", datasets=["owner/data", "x"])


def test_notebook_of_a_space_takes_its_code_from_there():
    notebook = json.loads(collect_space_files("someone/space")["train_colab.ipynb"])
    lines = [line for cell in notebook["cells"] for line in cell["source"] if line.startswith("CODE = ")]
    assert [line.split("  #")[0] for line in lines] == ['CODE = "someone/space"']


def test_collect_space_files_in_installed_wheel_asks_for_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "PACKAGE", tmp_path / "site-packages" / "fracture_lib")
    with pytest.raises(InvalidData, match="needs the project's source checkout"):
        collect_space_files("someone/space")


@pytest.mark.parametrize(
    ("full", "name"), [(False, "requirements-serving.txt"), (True, "requirements.txt")], ids=["lean", "full"]
)
def test_collect_space_files_take_the_requirements_of_serving_or_all(full, name):
    requirements = collect_space_files("someone/space", full=full)["requirements.txt"]
    assert requirements == cards.source_checkout() / name


@pytest.mark.slow
def test_pushed_space_starts_on_zero_gpu_from_its_files_alone_and_serves_the_hubs_model(
    hub, image_path, tmp_path
):
    repo, model = "someone/space", "someone/space-model"
    pin = f"{model}@{hub.add(model, BUNDLE / 'pytorch-cnn')}"
    variables = variables_for([pin])
    push_to_hub(collect_space_files(repo, [pin], ["someone/radiographs"]), repo, "space")
    set_space_variables(repo, variables)
    assert hub.repositories["spaces", repo].variables == variables == {"FRACTURE_HUB_PYTORCH_CNN": pin}

    files = hub.files(repo, kind="spaces")
    header = RepoCard(files["README.md"].decode()).data.to_dict()
    assert header["models"] == [model] and header["datasets"] == ["someone/radiographs"]
    repo_id, _, commit = header["preload_from_hub"][0].split()
    assert f"{repo_id}@{commit}" == pin
    thumbnail = header["thumbnail"].removeprefix(f"https://huggingface.co/spaces/{repo}/resolve/main/")
    assert thumbnail in files
    assert header["python_version"] in ZERO_GPU_PYTHONS and len(header["short_description"]) <= 60
    assert f"\ngradio=={header['sdk_version']}\n" in files["requirements.txt"].decode()
    assert header["app_file"] == "app.py"
    assert {"sdk", "license", "tags"} <= header.keys()
    space, missing = tmp_path / "space", tmp_path / "missing"
    for path, data in files.items():
        (space / path).parent.mkdir(parents=True, exist_ok=True)
        (space / path).write_bytes(data)
    missing.mkdir()
    for module in NOT_INSTALLED:
        (missing / f"{module}.py").write_text("raise ImportError")
    with (
        zero_gpu() as (variables_of_zero_gpu, requests),
        running_app(
            tmp_path / "log.txt", space, **variables, **variables_of_zero_gpu, PYTHONPATH=str(missing)
        ) as url,
    ):
        result = Client(url, verbose=False).predict(handle_file(image_path), 3, False, api_name="/compare")
    assert requests == ["/startup-report"], "ZeroGPU found a GPU function, and no image waited for a GPU"
    assert [p["model"] for p in result["predictions"]] == list(ALL_MODELS), result["failures"]
    assert result["predictions"][0]["source"].startswith(f"Hugging Face Hub, {model}")


def test_push_space_creates_it_on_zero_gpu_unless_hardware_is_named(hub):
    files = {"app.py": b""}
    _, messages = push_to_hub(files, "someone/free", "space")
    assert hub.repositories["spaces", "someone/free"].hardware == "zero-a10g"
    assert "hardware zero-a10g" in messages
    push_to_hub(files, "someone/paid", "space", hardware="cpu-basic")
    assert hub.repositories["spaces", "someone/paid"].hardware == "cpu-basic"


def test_push_to_existing_space_keeps_its_hardware_unless_named(hub):
    repo, files = "someone/upgraded", {"app.py": b""}
    push_to_hub(files, repo, "space", hardware="cpu-upgrade")
    _, messages = push_to_hub(files, repo, "space")
    assert hub.repositories["spaces", repo].hardware == "cpu-upgrade"
    assert not any(line.startswith("hardware") for line in messages)
    push_to_hub(files, repo, "space", hardware="zero-a10g")
    assert hub.repositories["spaces", repo].hardware == "zero-a10g"


@pytest.mark.parametrize("name", ["zerogpu", ""])
def test_push_space_with_unknown_hardware_lists_the_known(hub, name):
    hub.requests.clear()
    with pytest.raises(PushError, match=rf'"{name}" is not .* Nothing was changed\. .*zero-a10g'):
        push_to_hub({}, "someone/space-on-nothing", "space", hardware=name)
    assert hub.requests == []


def test_push_space_without_the_plan_for_it_advises(hub):
    hub.fail("POST", "/api/repos/create", status=402)
    with pytest.raises(PushError, match=r"No file was changed\. The account needs a paid plan"):
        push_to_hub({"app.py": b""}, "someone/unpaid", "space", hardware="cpu-basic")
    assert ("spaces", "someone/unpaid") not in hub.repositories


def test_push_space_deletes_modules_of_an_earlier_push(hub):
    repo = "someone/old-space"
    hub.add(repo, {"fracture_lib/page/views.py": b"", "mine.txt": b""}, kind="spaces")
    push_to_hub(collect_space_files(repo), repo, "space")
    files = hub.files(repo, kind="spaces")
    assert "fracture_lib/page/views.py" not in files and "mine.txt" in files


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("someone/a", 'is not pinned. Nothing was changed. Write it as "owner/name@commit"'),
        ("a@main", "is not pinned"),
        ("someone/none@main", "Cannot use someone/none@main: .* Nothing was changed"),
        ("someone/other-library@main", "lacks .*model_name.* Nothing was changed"),
        ("someone/other-network@main", 'names the model "vgg16". Nothing was changed'),
    ],
)
def test_variables_for_unusable_model_says_why(hub, model, message):
    hub.add("someone/other-library", {"config.json": b"{}"})
    config = {"model_name": "vgg16", "architecture": {}, "temperature": 1.0}
    hub.add("someone/other-network", {"config.json": json.dumps(config).encode()})
    with pytest.raises(PushError, match=message):
        variables_for([model])


def test_variables_configure_the_model_that_the_page_serves(hub, monkeypatch):
    pin = f"someone/configured@{hub.add('someone/configured', BUNDLE / 'resnet50')}"
    for name, value in variables_for([pin]).items():
        monkeypatch.setenv(name, value)
    assert resolve_model("resnet50").repo == "someone/configured"


def test_set_space_variables_that_fails_says_what_to_set(hub):
    hub.add("someone/no-variables", {"README.md": b""}, kind="spaces")
    hub.fail("POST", "/variables", status=500, times=100)
    with pytest.raises(PushError, match=r"was pushed, but .* in the Space's settings: A=b$"):
        set_space_variables("someone/no-variables", {"A": "b"})
