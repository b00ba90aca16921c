"""Pushing to a Hub on loopback with the real client, and everybody's client on what was pushed."""

import io
import json
import re
import shutil

import datasets
import numpy as np
import pytest
from conftest import running_app
from gradio_client import Client, handle_file
from huggingface_hub import DatasetCard, HfApi, ModelCard, RepoCard

import fracture_lib
from fracture_lib.__main__ import main
from fracture_lib.data import load_films
from fracture_lib.drawing import draw_film
from fracture_lib.errors import InvalidData, UnknownLabel
from fracture_lib.hub import BUNDLE
from fracture_lib.publish import plan_space
from fracture_lib.registry import MODELS

SETTINGS = ["config.json", "preprocessor_config.json", "evaluation.json", "head.safetensors", "model.onnx"]


@pytest.fixture(params=MODELS)
def pushed(request, hub):
    """(name, Hub id) of each bundled model, pushed."""
    repo = f"someone/pushed-{request.param}"
    if ("models", repo) not in hub.repositories:
        assert main(["push", "--model", request.param, "--repo", repo]) == 0
    return request.param, repo


def write_model(folder, accuracy):
    """A copy of the bundled pytorch-cnn that claims this accuracy."""
    shutil.copytree(BUNDLE / "pytorch-cnn", folder)
    evaluation = json.loads((folder / "evaluation.json").read_text())
    evaluation["metrics"]["accuracy"]["value"] = accuracy
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return str(folder)


# ---- push


def test_a_push_is_one_commit_of_all_that_a_model_is(hub, pushed):
    name, repo = pushed
    weights = "model.safetensors" if MODELS[name].backend == "pytorch" else "model.keras"
    files = hub.files(repo)
    assert {*SETTINGS, weights, "out_of_fold.safetensors", "README.md", "drawn-spiral.png"} < files.keys()
    for file in (*SETTINGS, weights):
        assert files[file] == (BUNDLE / name / file).read_bytes()
    assert len(hub.repositories["models", repo].commits) == 2, "the empty repository, and all of it"


def test_the_card_of_a_pushed_model_is_generated_and_valid(pushed):
    name, repo = pushed
    card = ModelCard.load(repo)
    card.validate()
    evaluation = json.loads((BUNDLE / name / "evaluation.json").read_text())
    data = card.data
    assert data.eval_results[0].metric_value == evaluation["metrics"]["accuracy"]["value"]
    assert (data.pipeline_tag, data.library_name) == ("image-classification", MODELS[name].library_name)
    assert data.license == "cc-by-4.0" and "accuracy" in data.metrics and "x-ray" in data.tags
    assert data.base_model == MODELS[name].pretrained
    assert repo in data.widget[0]["src"]
    sections = (
        "Intended use|Limits|Results|Confidence|Robustness|Data and its known faults|Leakage check|Compute"
    )
    for section in (sections + "|Reproduce|Citation").split("|"):
        assert re.search(rf"^##+ {section}$", card.text, re.MULTILINE), section
    assert "{{" not in card.text and "Out of scope" in card.text and "Not a medical device" in card.text


def test_a_dry_run_says_all_and_sends_nothing(hub, capsys):
    hub.requests.clear()
    assert main(["push", "--model", "pytorch-cnn", "--repo", "someone/dry", "--private", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "make the private model someone/dry" in out and "model.onnx" in out and "nothing was sent" in out
    assert {method for method, _ in hub.requests} == {"GET"}


def test_private_and_pull_requests(hub, tmp_path, capsys):
    repo = "someone/private"
    assert main(["push", "--model", "pytorch-cnn", "--repo", repo, "--private"]) == 0
    assert hub.repositories["models", repo].private
    before = hub.files(repo)
    better = write_model(tmp_path / "better", 0.9)
    assert main(["push", "--model", better, "--repo", repo, "--create-pr"]) == 0
    assert "discussions/1" in capsys.readouterr().out
    assert hub.files(repo) == before
    assert b'"value": 0.9' in hub.files(repo, "refs/pr/1")["evaluation.json"]


def test_a_better_model_is_not_pushed_over(hub, tmp_path, capsys):
    repo = "someone/better"
    hub.add(repo, BUNDLE / "pytorch-cnn")
    before = hub.files(repo)
    worse = write_model(tmp_path / "worse", 0.2)
    assert main(["push", "--model", worse, "--repo", repo]) == 1
    assert "it is the better one. --force" in capsys.readouterr().err and hub.files(repo) == before
    assert main(["push", "--model", worse, "--repo", repo, "--force"]) == 0
    assert b'"value": 0.2' in hub.files(repo)["evaluation.json"]


def test_a_model_of_another_framework_leaves_no_old_weights(hub):
    repo = "someone/changed"
    hub.add(repo, {"notes.txt": b"mine"})
    hub.add(repo, BUNDLE / "pytorch-cnn")
    assert main(["push", "--model", "tensorflow-cnn", "--repo", repo]) == 0
    assert "model.keras" in hub.files(repo) and "model.safetensors" not in hub.files(repo)
    assert hub.files(repo)["notes.txt"] == b"mine"


@pytest.mark.parametrize(
    ("method", "path", "status", "advice"),
    [
        ("PUT", "/lfs/", 403, "your token may not write"),
        ("POST", "/preupload/", 401, "HF_TOKEN"),
        ("POST", "/commit/", 412, "somebody pushed to it meanwhile"),
        ("POST", "/commit/", 500, "try again"),
    ],
)
def test_a_failed_push_leaves_the_repository_as_it_was(hub, tmp_path, capsys, method, path, status, advice):
    repo = f"someone/failed-{status}"
    hub.add(repo, {"config.json": b"{}"})
    before = hub.files(repo)
    hub.uploads.clear()
    hub.fail(method, path, status=status, times=100)
    assert main(["push", "--model", "pytorch-cnn", "--repo", repo]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot push to {repo}: ") and advice in error
    assert hub.files(repo) == before


def test_what_is_no_model_or_no_repository_is_refused(hub, tmp_path, capsys, monkeypatch):
    for arguments, words in (
        (["push", "--model", str(tmp_path), "--repo", "someone/a"], "has no config.json"),
        (["push", "--model", "pytorch-cnn", "--repo", "a"], 'write it as "owner/name"'),
    ):
        assert main(arguments) == 1
        assert words in capsys.readouterr().err
    monkeypatch.delenv("HF_TOKEN")
    assert main(["push", "--model", "pytorch-cnn", "--repo", "someone/a"]) == 1
    assert "hf auth login" in capsys.readouterr().err


# ---- everybody's client


def test_every_snippet_of_every_card_runs(pushed, film, tmp_path, monkeypatch, capsys):
    """Both the card on the Hub and the one in the bundle; what each prints is what we answer."""
    name, repo = pushed
    shutil.copy(film, tmp_path / "film.png")
    (tmp_path / "fracture_lib").symlink_to(BUNDLE.parent)
    monkeypatch.chdir(tmp_path)
    prediction = fracture_lib.load(name).predict(film, top_k=10)
    ours = {score.label: score.probability for score in prediction.scores}
    by_id = np.array([ours[c.label] for c in fracture_lib.CLASSES])
    for card in (ModelCard.load(repo).text, (BUNDLE / name / "README.md").read_text(encoding="utf-8")):
        snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        assert len(snippets) == 3
        for snippet in snippets:
            space = {}
            exec(snippet, space)
            out = capsys.readouterr().out
            if "onnxruntime" in snippet:
                assert "fracture_lib" not in snippet.replace("fracture_lib/bundle", "")
                np.testing.assert_allclose(space["probabilities"], by_id, atol=1e-4)
            elif "pipeline" in snippet:
                for answer in space["classifier"]("film.png", top_k=10):
                    assert answer["score"] == pytest.approx(ours[answer["label"]], abs=1e-4)
            elif "keras" in snippet:
                temperature = json.loads((BUNDLE / name / "config.json").read_text())["temperature"]
                said = space["model"].predict(fracture_lib.preprocess("film.png")[None, :, :, None])[0]
                calibrated = said.astype(float) ** (1 / temperature)
                np.testing.assert_allclose(calibrated / calibrated.sum(), by_id, atol=1e-4)
            else:
                assert f"{prediction.scores[0].probability:.1%}" in out


def test_transformers_auto_classes_know_our_models_and_push_them(hub, pixels):
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    repo = "someone/pushed-by-transformers"
    model = AutoModelForImageClassification.from_pretrained(str(BUNDLE / "pytorch-cnn")).eval()
    assert model.config.id2label == {c.id: c.label for c in fracture_lib.CLASSES}
    model.push_to_hub(repo)
    AutoImageProcessor.from_pretrained(str(BUNDLE / "pytorch-cnn")).push_to_hub(repo)
    again = type(model).from_pretrained(repo).eval()
    with torch.no_grad():
        output = again(torch.from_numpy(pixels), labels=torch.zeros(len(pixels), dtype=torch.long))
    ours = fracture_lib.load("pytorch-cnn").probabilities(pixels)
    np.testing.assert_allclose(output.logits.softmax(1).numpy(), ours, atol=1e-4)
    assert output.loss.item() == pytest.approx(-np.log(ours[:, 0]).mean(), abs=1e-3)


# ---- films


def test_films_become_a_dataset_with_grouped_splits_and_come_back_the_same(hub, film_folder, capsys):
    repo = "someone/films"
    assert main(["dataset", "push", "--data", str(film_folder), "--repo", repo, "--folds", "4"]) == 0
    films, back = load_films(film_folder), load_films(repo)
    assert back.fingerprint == films.fingerprint and back.grouped_by == "source_group"
    assert back.hub == repo and films.hub is None
    parts = {split: load_films(repo, split) for split in ("train", "validation")}
    assert [len(part.paths) for part in parts.values()] == [30, 10]
    rows = datasets.load_dataset(repo)
    groups = {split: set(part["source_group"]) for split, part in rows.items()}
    assert not groups["train"] & groups["validation"]
    assert set(rows["train"]["fold"]) == {1, 2, 3} and set(rows["validation"]["fold"]) == {0}
    card = DatasetCard.load(repo)
    assert card.data.task_categories == ["image-classification"] and films.fingerprint in card.text
    hub.requests.clear()
    assert len(hub.repositories["datasets", repo].commits) == 2
    assert load_films(f"{repo}@main").fingerprint == films.fingerprint
    assert not [path for _, path in hub.requests if "/resolve/" in path], "fetched once"


def test_an_image_folder_of_datasets_is_read(film_folder, tmp_path):
    rows = ["file_name,label"]
    for i, path in enumerate(sorted(film_folder.rglob("*.png"))):
        shutil.copy(path, tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{path.parent.parent.name}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    films = load_films(tmp_path)
    assert films.fingerprint == load_films(film_folder).fingerprint and films.hub is None


def test_films_that_cannot_be_had_are_a_sentence(hub):
    hub.add("someone/text", {"data.csv": b"text\nhello\n"}, kind="datasets")
    with pytest.raises(InvalidData, match="lacks the columns image and label: it has text"):
        load_films("someone/text")
    image = io.BytesIO()
    draw_film("Spiral").save(image, "PNG")
    strange = io.BytesIO()
    row = {"image": {"bytes": image.getvalue(), "path": "a.png"}, "label": "../../outside"}
    datasets.Dataset.from_list([row]).cast_column("image", datasets.Image()).to_parquet(strange)
    hub.add("someone/strange", {"data/train-00000.parquet": strange.getvalue()}, kind="datasets")
    with pytest.raises(UnknownLabel, match="outside"):
        load_films("someone/strange")
    with pytest.raises(InvalidData, match="hf auth login"):
        load_films("someone/nothing")
    with pytest.raises(InvalidData, match="pip install kagglehub"):
        load_films("kaggle:someone/films")
    with pytest.raises(InvalidData, match="There is no folder"):
        load_films("no/such/folder")


# ---- the Space


def test_the_space_gets_the_files_that_alone_start_the_app(hub, film, tmp_path):
    repo, model = "someone/space", "someone/space-model"
    pin = f"{model}@{hub.add(model, BUNDLE / 'pytorch-cnn')}"
    assert main(["space", "push", "--repo", repo, "--models", pin, "--datasets", "someone/films"]) == 0
    files = hub.files(repo, kind="spaces")
    assert files.keys() - {".gitattributes"} == plan_space(repo).keys()
    card = RepoCard(files["README.md"].decode())
    header = card.data.to_dict()
    assert header["models"] == [model] and header["datasets"] == ["someone/films"]
    assert header["preload_from_hub"][0].startswith(f"{model} ")
    assert header["preload_from_hub"][0].endswith(pin.partition("@")[2])
    requirements = files["requirements.txt"].decode()
    assert f"gradio[mcp]=={header['sdk_version']}" in requirements and header["app_file"] == "app.py"
    assert {"sdk", "python_version", "license", "tags", "thumbnail"} <= header.keys()
    assert hub.repositories["spaces", repo].variables == {"FRACTURE_HUB_PYTORCH_CNN": pin}
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
    settings = {"FRACTURE_HUB_PYTORCH_CNN": pin, "PYTHONPATH": ""}
    with running_app(tmp_path.parent / "space.txt", tmp_path, **settings) as url:
        answer = Client(url, verbose=False).predict(handle_file(film), 3, False, api_name="/compare")
    assert [p["model"] for p in answer["predictions"]] == [*MODELS, "ensemble"], answer["failures"]
    assert answer["predictions"][0]["source"].startswith(f"Hugging Face Hub, {model}")


def test_a_space_that_is_only_proposed_draws_from_what_it_did(hub, capsys):
    repo, model = "someone/proposed-space", "someone/proposed-model"
    pin = f"{model}@{hub.add(model, BUNDLE / 'pytorch-cnn')}"
    hub.add(repo, {"README.md": b"as it was"}, kind="spaces")
    assert main(["space", "push", "--repo", repo, "--models", pin, "--create-pr"]) == 0
    out = capsys.readouterr().out
    assert "discussions/1" in out and "once it is merged" in out and f"FRACTURE_HUB_PYTORCH_CNN={pin}" in out
    assert hub.repositories["spaces", repo].variables == {}
    assert hub.files(repo, kind="spaces") == {"README.md": b"as it was"}


@pytest.mark.parametrize(
    ("model", "words"),
    [("someone/a", "is not pinned"), ("someone/none@main", "cannot draw from"), ("a", "is not pinned")],
)
def test_a_space_is_not_pushed_for_models_that_it_cannot_draw_from(hub, capsys, model, words):
    assert main(["space", "push", "--repo", "someone/no-space", "--models", model]) == 1
    assert words in capsys.readouterr().err and ("spaces", "someone/no-space") not in hub.repositories


def test_a_push_needs_no_more_than_its_own_repository(hub):
    """Nothing is deleted, moved or asked of any other."""
    hub.requests.clear()
    assert main(["push", "--model", "pytorch-cnn", "--repo", "someone/alone"]) == 0
    api = [path for method, path in hub.requests if method != "GET" and path.startswith("/api/models/")]
    assert api and all("someone/alone" in path for path in api)
    assert HfApi().model_info("someone/alone").sha == hub.repositories["models", "someone/alone"].refs["main"]
