"""train_colab.ipynb as a file, what it is made of, and a run of it from a bare link."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import types
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pytest
from packaging.requirements import Requirement

from fracture_lib.cli import main
from fracture_lib.data.dataset import load_dataset_folder
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidModel
from fracture_lib.hub import BUNDLE
from fracture_lib.labels import CLASSES
from fracture_lib.models.report import EpochMetrics, EvaluationReport
from fracture_lib.notebook import colab, show
from fracture_lib.notebook.plan import (
    QUICK_PLAN,
    HeldOut,
    Plan,
    Timing,
    find_held_out,
    select_images,
    time_models,
)
from fracture_lib.registry import MODELS
from fracture_lib.training.pretrain import find_weights
from tests.helpers.training import write_random_resnet50

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "train_colab.ipynb"


@pytest.fixture
def images(dataset_folder):
    return load_dataset_folder(dataset_folder, "Train")


@pytest.fixture
def displayed(monkeypatch):
    """The texts that are displayed, and the figures that are shown or drawn in the place of a text."""
    outputs = []

    def display(output, display_id=False):
        outputs.append(output.data)
        return types.SimpleNamespace(update=lambda bundle, raw: outputs.append(bundle))

    monkeypatch.setattr(show, "display", display)
    monkeypatch.setattr("plotly.graph_objects.Figure.show", lambda figure: outputs.append(figure))
    return outputs


# The file


def test_notebook_is_valid_and_holds_no_outputs():
    content = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(content)
    cells = [cell for cell in content.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])] == cells[:1]


def test_notebook_has_one_section_with_a_text_per_step():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert [cell["cell_type"] for cell in cells] == ["markdown", "code"] * (len(cells) // 2)
    headings = [line.strip() for cell in cells[::2] for line in cell["source"] if line.startswith("## ")]
    assert [heading.removeprefix("## ") for heading in headings] == [
        *("Settings", "Install", "Data", "Time", "Train", "Evaluate"),
        *("Try a prediction", "Model card", "Publish"),
    ]
    assert all(not cell["source"][-1].startswith("#") for cell in cells[::2])


# The environment


def preinstalled() -> dict[str, str]:
    """Return the versions that Colab has; "" for those that tests/colab.txt leaves open."""
    lines = (ROOT / "tests" / "colab.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if re.match(r"\w", line)]
    return {pin.name.lower(): str(pin.specifier).removeprefix("==") for pin in pins}


def test_install_cell_names_what_the_library_needs_and_colab_lacks():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*pyproject["dependencies"], *pyproject["optional-dependencies"]["train"]]
    needed = {Requirement(text).name.lower() for text in texts}
    (command,) = re.findall(
        r"%pip install -q -c preinstalled.txt ([^\"\\]+)", NOTEBOOK.read_text(encoding="utf-8")
    )
    assert {name.lower() for name in command.split()} == needed - preinstalled().keys() - {"tensorflow"}


def test_base_dependencies_allow_what_colab_has():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for requirement in map(Requirement, pyproject["dependencies"]):
        version = preinstalled().get(requirement.name.lower())
        assert version is None or version in requirement.specifier, requirement


@pytest.mark.parametrize("data", ["kaggle:owner/name", "hf-hub:owner/name", "data", Path("data"), None])
def test_mount_outside_google_drive_does_nothing(data):
    colab.mount(data)


def test_mount_with_a_folder_in_google_drive_mounts_it_once(monkeypatch):
    mounted = []
    drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(drive=drive))
    colab.mount("hf-hub:owner/name", None, "/content/drive/MyDrive/fracatlas", "/content/drive/b")
    assert mounted == ["/content/drive"]


@pytest.mark.parametrize(("token", "n_forms"), [("hf_test", 0), (None, 1)])
def test_log_in_shows_a_form_only_without_a_token(monkeypatch, token, n_forms):
    forms = []
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token)
    monkeypatch.setattr("huggingface_hub.notebook_login", lambda: forms.append("form"))
    colab.log_in()
    assert len(forms) == n_forms


# Plans


def test_plan_estimates_the_fits_of_all_models_and_the_cached_views(images):
    plan = Plan(["pytorch-cnn", "resnet50"], epochs=10, n_folds=5, n_measured_folds=5, images_per_class=3)
    timings = {"pytorch-cnn": Timing(epoch=0.1, view=0), "resnet50": Timing(epoch=0.2, view=0.5)}
    seconds = 30 * (
        10 * 5 * 0.1 + 10 * 5 * 0.2 + 16 * 0.5
    )  # 30 images; the fits cost as much as 5 on all of them
    assert plan.n_images(images) == 30
    assert plan.minutes(images, timings) == pytest.approx(seconds / 60)


def test_quick_plan_is_a_small_part_of_a_full_one(images):
    timings = {"pytorch-cnn": Timing(epoch=0.1, view=0)}
    assert QUICK_PLAN.minutes(images, timings) < Plan(["pytorch-cnn"]).minutes(images, timings) / 10


@pytest.mark.slow
def test_time_models_measures_every_model(images, monkeypatch, tmp_path):
    write_random_resnet50(tmp_path / "weights.safetensors")
    weights = find_weights(tmp_path / "weights.safetensors")
    monkeypatch.setattr(
        "fracture_lib.notebook.plan.find_weights", {MODELS["resnet50"].pretrained: weights}.get
    )
    timings = time_models(["pytorch-cnn", "resnet50", "pytorch-cnn"], images)
    assert timings.keys() == {"pytorch-cnn", "resnet50"}
    assert timings["pytorch-cnn"].epoch > 0 and timings["resnet50"].view > 0


def test_select_images_copies_as_many_of_each_class_with_their_groups(images, tmp_path):
    images = replace(images, groups=np.arange(40) // 2)
    subset = select_images(images, 3, tmp_path / "images")
    assert set(subset.paths) < set(images.paths) and np.bincount(subset.labels).tolist() == [3] * 10
    copied = load_dataset_folder(tmp_path / "images", "Train")
    assert copied.grouped_by == "source_group" and np.bincount(copied.labels).tolist() == [3] * 10
    assert len(np.unique(copied.groups)) == len(np.unique(subset.groups)) == 20
    assert select_images(images, 3, tmp_path / "images").paths == subset.paths


def test_find_held_out_returns_an_image_of_no_trained_group(images, dataset_folder, tmp_path):
    trained = select_images(images, 3, tmp_path)
    held_out = find_held_out(dataset_folder, trained)
    assert held_out.path in set(images.paths) - set(trained.paths)
    assert held_out.path.parent.parent.name == f"{held_out.label} fracture" and "Held out" in held_out.note


def test_find_held_out_leaves_out_groups_that_were_trained_on(images, tmp_path):
    for c in CLASSES:
        folder = tmp_path / c.label
        folder.mkdir()
        for seed in range(2):
            synthetic_radiograph(c.label, seed).save(folder / f"{seed}.png")
    rows = [f"{c.label}/{seed}.png,{c.label}" for c in CLASSES for seed in range(2)]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,source_group", *rows]), encoding="utf-8")
    trained = select_images(load_dataset_folder(tmp_path), 1, tmp_path.parent / "one of two")
    assert "not skill" in find_held_out(tmp_path, trained).note


# What is shown


def test_dataset_displays_counts_examples_groups_and_near_duplicates(images, displayed):
    show.dataset(replace(images, paths=images.paths[:39] + images.paths[:1]))
    (html,) = displayed
    assert "40 images in 40 groups by source_group." in html
    assert "2 images are near-duplicates of others, in 1 clusters." in html
    assert html.count("<img") == 40 + 2 and html.count('scope="row"') == 10 + 1
    assert ">Avulsion, Spiral<" in html, "a cluster whose labels differ"


def test_estimate_prints_minutes_of_each_plan(images, capsys, monkeypatch):
    monkeypatch.setattr(show, "time_models", lambda names, images: dict.fromkeys(names, Timing(0.05, 0.0)))
    show.estimate(images, {"QUICK": QUICK_PLAN, "full": Plan(["pytorch-cnn"])})
    assert "QUICK: pytorch-cnn on 40 images, about 1 min\n" in (out := capsys.readouterr().out)
    assert "full: pytorch-cnn on 40 images, about 18 min\n" in out


def test_live_curves_are_redrawn_in_one_place(displayed, monkeypatch):
    monkeypatch.setattr("plotly.io.renderers.default", "plotly_mimetype")
    callback = show.live_curves("resnet50")
    history = [EpochMetrics(5, 2.0, 0.1), EpochMetrics(10, 1.5, 0.2)]
    callback("fold 1 of 5", history[:1])
    callback("fold 1 of 5", history)
    place, _, bundle = displayed
    assert place.startswith("resnet50")
    assert "resnet50, fold 1 of 5, epoch 10" in str(bundle) and "1.5" in str(bundle)


@pytest.mark.parametrize(("name", "n_figures"), [("resnet50", 3), ("ensemble", 2)])
def test_evaluation_prints_the_accuracy_and_draws_what_the_report_holds(displayed, capsys, name, n_figures):
    report = EvaluationReport.read(BUNDLE / name)
    show.evaluation(report)
    expected = f"{name}: accuracy {report.accuracy.percent()}, n = {report.n}\n"
    assert capsys.readouterr().out == expected and len(displayed) == n_figures


def test_prediction_displays_the_true_class_the_answer_and_its_evidence(image_path, displayed, tmp_path):
    folder = shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "trained")
    answer = show.prediction(folder, HeldOut(image_path, "Spiral", "Held out."), top_k=2)
    (html,) = displayed
    assert answer.model == "pytorch-cnn" and str(answer.source) == "local folder trained"
    assert "True class: Spiral. Held out." in html
    assert html.count('scope="row"') == 2 + 1 and f"support {answer.label}" in html
    assert "Not a medical device" in html and str(folder) not in html


def test_prediction_with_an_incomplete_model_raises_invalid_model(image_path, displayed, tmp_path):
    with pytest.raises(InvalidModel, match=r"no config\.json"):
        show.prediction(tmp_path, HeldOut(image_path, "Spiral", ""))
    assert displayed == []


def test_card_displays_the_card_without_its_metadata(displayed):
    show.card(BUNDLE / "resnet50")
    (markdown,) = displayed
    assert markdown.strip().startswith("# ") and "pipeline_tag" not in markdown


# From a bare link


def installed_versions(python: str) -> set[str]:
    command = [python, "-m", "pip", "list", "--format=freeze"]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines())


@pytest.mark.slow
def test_notebook_from_a_bare_link_trains_and_pushes_with_the_code_of_a_space(
    hub, dataset_folder, tmp_path, monkeypatch
):
    """With COLAB_PYTHON, which .ci/colab sets, in an environment like Colab's, to which the notebook adds."""
    assert main(["push", "space", "--repo", "someone/code"]) == 0
    notebook = tmp_path / "train_colab.ipynb"
    notebook.write_bytes(hub.files("someone/code", kind="spaces")["train_colab.ipynb"])
    python = os.environ.get("COLAB_PYTHON", sys.executable)
    before = installed_versions(python)
    kernel = tmp_path / "jupyter" / "kernels" / "colab" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    content = tmp_path / "content"
    content.mkdir()
    parameters = {
        "DATA": str(dataset_folder),
        "REPO": "someone/trial",
        "INSTALL": "COLAB_PYTHON" in os.environ,
    }
    executed = papermill.execute_notebook(
        notebook,
        tmp_path / "executed.ipynb",
        parameters,
        cwd=content,
        kernel_name="colab",
        progress_bar=False,
    )
    outputs = [output for cell in executed.cells for output in cell.get("outputs", ())]
    assert "True class: " in str(outputs) and re.search(r"about \d+ min", str(outputs))
    bars = "".join(
        output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"
    )
    assert "fold 1 of 2: 100%" in bars and "all images: 100%" in bars, "the curves keep the progress bars"
    assert {path.name for path in content.iterdir()} <= {"fracture-code", "preinstalled.txt", "trained"}
    assert ("models", "someone/trial-pytorch-cnn") in hub.repositories
    assert before <= installed_versions(python), "installing replaced packages"
