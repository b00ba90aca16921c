"""Cards: what they say, that every snippet runs, and where the template is found."""

import ast
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import ExifTags, Image

import fracture_lib
from fracture_lib.cli import main
from fracture_lib.data.dataset import load_dataset_folder
from fracture_lib.errors import InvalidData, InvalidModel
from fracture_lib.hub import BUNDLE
from fracture_lib.labels import CLASSES
from fracture_lib.models.report import EvaluationReport
from fracture_lib.publishing import cards
from fracture_lib.publishing.cards import (
    TABLE_END,
    TABLE_START,
    WITHHELD,
    render_card,
    render_dataset_card,
    render_space_readme,
    results_table,
    source_checkout,
    write_card,
    write_results_table,
)
from fracture_lib.registry import ALL_MODELS, MODELS

SECTIONS = (
    "Intended use",
    "Results",
    "Confidence",
    "Classes",
    "Robustness",
    "Training data and known issues",
    "Leakage check",
    "Limitations",
    "Usage",
    "Reproduction",
    "Compute",
    "Citation",
)


@pytest.fixture
def model_folder(tmp_path):
    """A copy of a bundled model, to edit."""
    return shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")


@pytest.fixture
def installed_package(tmp_path, monkeypatch):
    """A package folder as in an installed wheel, without a source checkout around it."""
    package = tmp_path / "site-packages" / "fracture_lib"
    package.mkdir(parents=True)
    shutil.copy(source_checkout() / "model_card.md", package)
    monkeypatch.setattr(cards, "PACKAGE", package)
    return package


# Model cards


@pytest.mark.parametrize("name", MODELS)
def test_bundled_card_is_the_rendered_one(name):
    card = (BUNDLE / name / "README.md").read_text(encoding="utf-8")
    assert card == f"{render_card(BUNDLE / name)}\n", "run `fracture cards`"


@pytest.mark.parametrize("name", MODELS)
def test_render_card_states_what_was_measured(name):
    card, report = render_card(BUNDLE / name), EvaluationReport.read(BUNDLE / name)
    for text in (
        "Bone Break Classification",
        "Not a medical device",
        "Out of scope",
        WITHHELD,
        report.accuracy.percent(),
        report.metrics["expected_calibration_error"].plain(),
        report.robustness["JPEG, quality 40"].percent(),
        report.protocol,
        f"{100 * MODELS[name].reference_accuracy:.2f} %",
    ):
        assert text in card
    for section in SECTIONS:
        assert re.search(rf"^##+ {section}$", card, re.MULTILINE), section
    assert "{{" not in card and "| None" not in card


@pytest.mark.parametrize("name", MODELS)
def test_render_card_metadata_follows_the_hubs_vocabulary(name):
    repo = "someone/model"
    data = ModelCard(render_card(BUNDLE / name, repo)).data
    report = EvaluationReport.read(BUNDLE / name)
    assert data.eval_results[0].metric_value == report.accuracy.value
    assert (data.pipeline_tag, data.library_name) == ("image-classification", MODELS[name].library_name)
    assert data.license == "cc-by-4.0" and "accuracy" in data.metrics and "x-ray" in data.tags
    assert data.base_model == ("timm/resnet50.tv_in1k" if name == "resnet50" else None)
    assert data.widget[0]["src"] == f"https://huggingface.co/{repo}/resolve/main/synthetic-spiral.png"
    assert "widget" not in ModelCard(render_card(BUNDLE / name)).data.to_dict()


@pytest.mark.parametrize(
    ("pretrained", "base_model"),
    [
        ("hf-hub:someone/base@v1", "someone/base"),
        ("someone/base", "someone/base"),
        ("a file of weights", "timm/resnet50.tv_in1k"),
        (None, None),
    ],
)
def test_render_card_names_the_base_model_without_prefix(tmp_path, pretrained, base_model):
    folder = shutil.copytree(BUNDLE / "resnet50", tmp_path / "model")
    report = EvaluationReport.read(folder)
    replace(report, training=replace(report.training, pretrained=pretrained)).write(folder)
    assert ModelCard(render_card(folder)).data.base_model == base_model


def test_render_card_of_model_trained_on_other_data_claims_nothing_about_bone_break(model_folder):
    report = EvaluationReport.read(model_folder)
    data = replace(report.data, fingerprint="0123" * 16, hub="someone/data@v1", grouped_by="perceptual hash")
    replace(report, data=data).write(model_folder)
    card = render_card(model_folder)
    assert "Bone Break" not in card and "EXPERIMENTS.md" not in card and "28 have" not in card
    assert "a dataset that this library does not know" in card and "by perceptual hash" in card
    assert ModelCard(card).data.datasets == ["someone/data"]


def test_render_card_with_test_results_shows_both_subsets(model_folder):
    report = EvaluationReport.read(model_folder)
    test = replace(report, n=140, deduplicated=replace(report, n=112))
    replace(report, test=test).write(model_folder)
    card = render_card(model_folder)
    accuracy = report.accuracy.percent()
    assert f"| all of Test | 140 | {accuracy} |" in card
    assert f"| without near-duplicates in Train | 112 | {accuracy} |" in card
    assert WITHHELD not in card


def test_write_card_writes_readme(model_folder):
    (model_folder / "README.md").unlink()
    assert write_card(str(model_folder)) == model_folder / "README.md"
    assert (model_folder / "README.md").read_text(encoding="utf-8") == f"{render_card(model_folder)}\n"


@pytest.mark.parametrize("part", ["data", "training", "robustness", "conformal", "selective_risk"])
def test_render_card_of_report_without_a_part_names_it(model_folder, part):
    replace(EvaluationReport.read(model_folder), **{part: None}).write(model_folder)
    with pytest.raises(InvalidModel, match=rf"model/evaluation\.json lacks {part}\. Run `fracture remeasure"):
        render_card(model_folder)


def test_render_card_of_report_without_a_metric_names_it(model_folder):
    report = EvaluationReport.read(model_folder)
    replace(report, metrics={"accuracy": report.accuracy}).write(model_folder)
    with pytest.raises(InvalidModel, match="lacks top3_accuracy, macro_f1"):
        render_card(model_folder)


# Snippets


def snippets_of(card):
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


@pytest.fixture(params=["8 bits", "16 bits"])
def xray(request, image_path, tmp_path, monkeypatch):
    """xray.png in the current folder, beside the library."""
    path = tmp_path / "xray.png"
    with Image.open(image_path) as image:
        pixels = np.asarray(image.convert("L"))
    if request.param == "16 bits":
        pixels = pixels.astype(np.uint16) * 37 + 1200  # RGB would clip it
    Image.fromarray(pixels).save(path)
    (tmp_path / "fracture_lib").symlink_to(BUNDLE.parent)
    monkeypatch.chdir(tmp_path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("from_hub", [True, False], ids=["hub", "bundle"])
@pytest.mark.parametrize("name", MODELS)
def test_card_snippets_run_and_give_the_librarys_probabilities(name, from_hub, hub, xray, capsys):
    repo = f"someone/snippets-{name}"
    if from_hub:
        hub.add(repo, BUNDLE / name)
    classifier = fracture_lib.load_model(name)
    expected = classifier.predict_proba(xray)[0]
    by_label = dict(zip(classifier.classes, expected, strict=True))
    snippets = snippets_of(render_card(BUNDLE / name, repo if from_hub else None))
    assert len(snippets) == 3
    for snippet in snippets:
        variables = {}
        exec(snippet, variables)
        output = capsys.readouterr().out
        if "onnxruntime" in snippet:
            assert "fracture_lib" not in snippet.replace("fracture_lib/bundle", "")
            np.testing.assert_allclose(variables["probabilities"], expected, atol=1e-4)
        elif "pipeline" in snippet:
            scores = ast.literal_eval(output)
            assert len(scores) == 3
            for score in scores:
                assert score["score"] == pytest.approx(by_label[score["label"]], abs=1e-4)
        elif "keras" in snippet:
            printed = np.array(output[output.rindex("[") + 1 : output.rindex("]")].split(), float)
            np.testing.assert_allclose(printed, expected, atol=1e-4)
        else:
            assert f'load_model("{f"hf-hub:{repo}" if from_hub else name}")' in snippet
            assert f"{expected.max():.1%}" in output


@pytest.mark.parametrize("name", MODELS)
def test_render_card_says_which_files_need_the_library(name):
    card = " ".join(render_card(BUNDLE / name).split())
    assert "DICOM, TIFF and other files need this library" in card


@pytest.mark.parametrize("orientation", range(1, 9))
def test_card_snippet_for_onnx_runtime_follows_the_orientation(
    orientation, image_path, tmp_path, monkeypatch
):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    with Image.open(image_path) as image:
        image.convert("L").save(tmp_path / "xray.png", exif=exif)
    (tmp_path / "fracture_lib").symlink_to(BUNDLE.parent)
    monkeypatch.chdir(tmp_path)
    variables = {}
    exec(snippets_of(render_card(BUNDLE / "pytorch-cnn"))[-1], variables)
    expected = fracture_lib.load_model("pytorch-cnn").predict_proba("xray.png")[0]
    np.testing.assert_allclose(variables["probabilities"], expected, atol=1e-4)


def test_card_reproduction_command_trains_with_the_reports_settings(monkeypatch):
    calls = []

    def record(*arguments, **options):
        calls.append((arguments, options))
        raise InvalidData("stop here")

    monkeypatch.setattr("fracture_lib.training.trainer.train", record)
    (command,) = re.findall(r"```sh\n(fracture .*)\n```", render_card(BUNDLE / "resnet50"))
    assert main(command.split()[1:]) == 1
    ((arguments, options),) = calls
    assert arguments[:2] == ("resnet50", "DIR")
    assert (options["seed"], options["n_folds"], options["n_measured_folds"]) == (0, 5, 5)


# Other cards


def test_render_dataset_card_counts_splits_and_classes(dataset_folder):
    images = load_dataset_folder(dataset_folder)
    card = render_dataset_card(images, {"train": 30, "validation": 10})
    data = ModelCard(card).data
    assert data.task_categories == ["image-classification"] and data.license == "unknown"
    assert "40 radiographs of ten fracture types, in 40 groups by source_group" in card
    assert "| train | 30 |" in card and images.fingerprint in card and "Bone Break" not in card
    assert "Images of one patient or figure share a `source_group`" in card
    for c in CLASSES:
        assert f"| {c.label} | 4 | {c.description} |" in card


def test_render_dataset_card_of_hashed_images_claims_no_patient_groups(dataset_folder):
    images = replace(load_dataset_folder(dataset_folder), grouped_by="perceptual hash")
    card = render_dataset_card(images, {"train": 40})
    assert "Near-duplicates share a `source_group`" in card and "patient" not in card


def test_render_card_of_hashed_images_claims_no_patient_groups(tmp_path):
    folder = shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "model")
    report = EvaluationReport.read(folder)
    data = replace(report.data, grouped_by="perceptual hash", fingerprint="other")
    replace(report, data=data).write(folder)
    card = render_card(folder)
    assert "images of one patient that look different may be" in card
    assert ModelCard(card).data.license == "unknown"


def test_render_space_readme_links_and_preloads_its_models():
    readme = source_checkout() / "README.md"
    text = render_space_readme(readme, "someone/space", ["someone/model@abc"], ["someone/data"])
    header = ModelCard(text).data.to_dict()
    assert header["models"] == ["someone/model"] and header["datasets"] == ["someone/data"]
    (preload,) = header["preload_from_hub"]
    assert re.fullmatch(r"someone/model [\w.,-]+ abc", preload) and "model.onnx" in preload
    assert header["thumbnail"].startswith("https://huggingface.co/spaces/someone/space/resolve/main/docs/")
    assert text.endswith(readme.read_text(encoding="utf-8").split("---\n", 2)[2])


def test_render_space_readme_without_models_preloads_nothing():
    header = ModelCard(render_space_readme(source_checkout() / "README.md", "someone/space")).data.to_dict()
    assert not {"models", "datasets", "preload_from_hub"} & header.keys()


# The README's table


def test_readme_contains_the_results_table():
    readme = (source_checkout() / "README.md").read_text(encoding="utf-8")
    assert f"{TABLE_START}\n\n{results_table()}\n\n{TABLE_END}" in readme, "run `fracture cards`"


def test_results_table_has_one_row_per_model():
    header, _, *rows = results_table().splitlines()
    assert header.count("|") == 9 and "original project (different split)" in header
    assert [row.split("`")[1] for row in rows] == list(ALL_MODELS)
    for row, name in zip(rows, ALL_MODELS, strict=True):
        assert EvaluationReport.read(BUNDLE / name).accuracy.percent() in row and WITHHELD in row


def test_write_results_table_changes_only_the_text_between_the_marks(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{TABLE_START}\nold\n{TABLE_END}\nafter\n", encoding="utf-8")
    assert write_results_table(readme) == readme
    text = readme.read_text(encoding="utf-8")
    assert text == f"before\n{TABLE_START}\n\n{results_table()}\n\n{TABLE_END}\nafter\n"
    write_results_table(readme)
    assert readme.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("text", ["", TABLE_START, TABLE_END, f"{TABLE_END} {TABLE_START}"])
def test_write_results_table_without_marks_raises_invalid_data(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidData, match=r"README\.md lacks the marks"):
        write_results_table(readme)
    assert readme.read_text(encoding="utf-8") == text


# An installed wheel


def test_render_card_in_installed_wheel_equals_the_checkouts(installed_package):
    assert f"{render_card(BUNDLE / 'resnet50')}\n" == (BUNDLE / "resnet50" / "README.md").read_text(
        encoding="utf-8"
    )


def test_write_results_table_in_installed_wheel_asks_for_a_checkout(installed_package):
    with pytest.raises(InvalidData, match="needs the project's source checkout"):
        write_results_table()
