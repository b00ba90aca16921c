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
from fracture_lib.models.report import (
    DetectorReport,
    EvaluationReport,
    Interval,
    OutcomeRates,
    SplitResult,
    ViewAccuracy,
    store_test_result,
)
from fracture_lib.publishing import cards
from fracture_lib.publishing.cards import (
    RESULTS_END,
    RESULTS_START,
    UNSCORED,
    render_card,
    render_dataset_card,
    render_space_readme,
    results,
    source_checkout,
    write_card,
    write_results,
)
from fracture_lib.registry import ALL_MODELS, DETECTOR, MODELS

SECTIONS = (
    "Intended use",
    "Results",
    "Views",
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


@pytest.mark.parametrize("name", [*MODELS, DETECTOR])
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
    assert data.widget[0]["src"] == f"https://huggingface.co/{repo}/resolve/main/synthetic-spiral.png"
    assert "widget" not in ModelCard(render_card(BUNDLE / name)).data.to_dict()


@pytest.mark.parametrize(
    ("pretrained", "base_model"),
    [
        ("hf-hub:someone/base@v1", "someone/base"),
        ("someone/base", "someone/base"),
        ("a file of weights", None),
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


def test_render_card_shows_test_results_of_its_weights_only(model_folder):
    assert f"| {UNSCORED} |" in render_card(model_folder)
    metrics = {name: Interval(0.5, 0.4, 0.6) for name in ("accuracy", "macro_f1", "top3_accuracy")}
    store_test_result(model_folder, SplitResult(140, metrics, deduplicated=SplitResult(112, metrics)))
    card = render_card(model_folder)
    assert "| all of Test | 140 | 50.0 % (40.0 to 60.0) |" in card
    assert "| without near-duplicates in Train | 112 | 50.0 % (40.0 to 60.0) |" in card
    assert UNSCORED not in card
    with (model_folder / "model.onnx").open("ab") as file:
        file.write(b"trained again")
    card = render_card(model_folder)
    assert "50.0 % (40.0 to 60.0)" not in card and f"| {UNSCORED} |" in card


def test_render_card_shows_what_newer_reports_hold(model_folder):
    report = EvaluationReport.read(model_folder)
    weak = {"precision": None, "recall": 0.029, "recall_interval": Interval(0.029, 0.011, 0.08), "f1": 0.0}
    rows = [replace(row, recall=0.5) for row in report.per_class]
    rows = [replace(row, **weak) if row.label == "Longitudinal" else row for row in rows]
    training = replace(
        report.training, pretrained="FracAtlas, 3822 radiographs", minutes=75.2, train_accuracy=0.613
    )
    by_views = {"1": ViewAccuracy(0.359, 0.3, 0.4, 0.05), "6": ViewAccuracy(0.402, 0.35, 0.45, 0.04)}
    replace(report, per_class=rows, training=training, by_views=by_views).write(model_folder)
    card = render_card(model_folder)
    for text in (
        "| this model | 61.3 % |",
        "| original project (different split) | not known | not known | 17.18 % |",
        "| 1 (fast) | 35.9 % (30.0 to 40.0) | 0.050 |",
        "| none | 35.9 % (30.0 to 40.0) |",
        "| Longitudinal | 68 | never predicted | 2.9 % (1.1 to 8.0) | 0.0 % |",
        "They took 75 minutes;",
        "weights: FracAtlas, 3822 radiographs.",
        " --pretrain-on FRACATLAS\n",
        "title = {FracAtlas: A Dataset",
        "Hardly ever recognized: Longitudinal (2.9 % of 68)",
    ):
        assert text in card, text


def test_render_card_without_a_weak_class_says_so(model_folder):
    report = EvaluationReport.read(model_folder)
    replace(report, per_class=[replace(row, recall=0.1) for row in report.per_class]).write(model_folder)
    assert "Every class is recognized in 10.0 % of its radiographs or more." in render_card(model_folder)


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
@pytest.mark.parametrize("place", ["hub", "bundle", "folder"])
@pytest.mark.parametrize("name", MODELS)
def test_card_snippets_run_and_give_the_librarys_probabilities(name, place, hub, xray, capsys):
    repo, folder, reference = None, BUNDLE / name, name
    if place == "hub":
        repo = f"someone/snippets-{name}"
        reference = f"hf-hub:{repo}"
        hub.add(repo, folder)
    elif place == "folder":
        folder = shutil.copytree(folder, xray.parent / "my-model")
        reference = "local-dir:my-model"
    classifier = fracture_lib.load_model(name)
    expected = classifier.predict_proba(xray)[0]
    by_label = dict(zip(classifier.classes, expected, strict=True))
    snippets = snippets_of(render_card(folder, repo))
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
            native = fracture_lib.load_model(name, runtime="native").predict_proba(xray)[0]
            np.testing.assert_allclose(printed, native, atol=1e-4)
        else:
            assert f'load_model("{reference}")' in snippet
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


# The detector's card


@pytest.fixture
def detector_folder(tmp_path):
    """A copy of the bundled detector with a report of another source."""
    folder = shutil.copytree(BUNDLE / DETECTOR, tmp_path / "detector")
    external = {"all": OutcomeRates(989, 0.5, 0.25, 0.25), "Spiral": OutcomeRates(74, 0.9, 0.1, 0.0)}
    outcomes = {
        "fractured": OutcomeRates(683, 0.7, 0.25, 0.05),
        "not fractured": OutcomeRates(3139, 0.05, 0.3, 0.65),
    }
    report = DetectorReport.read(folder)
    replace(report, external=external, outcomes=outcomes, training_minutes=41.0).write(folder)
    return folder


def test_detector_card_states_what_was_measured(detector_folder):
    card, report = render_card(detector_folder), DetectorReport.read(detector_folder)
    flat = " ".join(card.split())
    for text in (
        "Not a medical device",
        "It misses fractures",
        report.missed.percent(),
        "| FracAtlas, fractured | 683 | 70.0 % | 25.0 % | 5.0 % |",
        "| Bone Break, all fractured, never trained on | 989 | 50.0 % | 25.0 % | 25.0 % |",
        "| Spiral | 74 | 90.0 % | 10.0 % | 0.0 % |",
        "sees a fracture in 50.0 % of them (FracAtlas, out of fold: 70.0 %) and none in 25.0 % (5.0 %), "
        "so it misses more fractures there",
        "It took 41 minutes.",
        "title = {FracAtlas: A Dataset",
        *(interval.plain() for interval in report.metrics.values()),
        *(row.pointing.percent() for row in report.localization.values()),
    ):
        assert text in flat, text
    assert "| None" not in card and "{{ " not in card


def test_detector_card_without_another_source_says_so(detector_folder):
    replace(DetectorReport.read(detector_folder), external={}).write(detector_folder)
    card = render_card(detector_folder)
    assert "No other source was measured." in card and "| Bone Break" not in card


def test_detector_card_metadata_names_the_auroc(detector_folder):
    data = ModelCard(render_card(detector_folder, "someone/detector")).data
    report = DetectorReport.read(detector_folder)
    assert data.eval_results[0].metric_value == report.metrics["auroc"].value
    assert (data.license, data.library_name) == ("cc-by-4.0", "onnx")


@pytest.mark.slow
@pytest.mark.parametrize("from_hub", [True, False], ids=["hub", "bundle"])
def test_detector_card_snippets_run_and_give_the_librarys_probability(from_hub, hub, xray, capsys):
    repo = "someone/snippets-detector"
    if from_hub:
        hub.add(repo, BUNDLE / DETECTOR)
    expected = fracture_lib.detect_fracture(xray).probability
    library, onnx_alone = snippets_of(render_card(BUNDLE / DETECTOR, repo if from_hub else None))
    exec(library, {})
    assert capsys.readouterr().out.startswith(f"{expected:.0%} The detector ")
    variables = {}
    exec(onnx_alone, variables)
    assert "fracture_lib" not in onnx_alone.replace("fracture_lib/bundle", "")
    assert variables["probability"] == pytest.approx(expected, abs=1e-4)
    assert variables["heatmap"].shape == (1, 16, 16)


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


# The README's results


def test_readme_contains_the_results():
    readme = (source_checkout() / "README.md").read_text(encoding="utf-8")
    assert f"{RESULTS_START}\n\n{results()}\n\n{RESULTS_END}" in readme, "run `fracture cards`"


def test_results_have_one_row_per_model():
    header, _, *rows = results().partition("\n\n")[0].splitlines()
    assert "training images" in header and "original project, its own test" in header
    assert [row.split("`")[1] for row in rows] == list(ALL_MODELS)
    for row, name in zip(rows, ALL_MODELS, strict=True):
        assert EvaluationReport.read(BUNDLE / name).accuracy.percent() in row
        assert row.count("|") == header.count("|")
        if name in MODELS:
            assert f"| {100 * MODELS[name].reference_accuracy:.2f} % |" in row


@pytest.fixture
def bundle(tmp_path):
    """A copy of what `results` reads."""
    for name in (*ALL_MODELS, DETECTOR):
        (tmp_path / name).mkdir()
        shutil.copy(BUNDLE / name / "evaluation.json", tmp_path / name)
    return tmp_path


def test_results_name_the_ensembles_lead_and_its_weak_classes(bundle):
    folder = bundle / "ensemble"
    report = EvaluationReport.read(folder)
    lead = {
        "resnet50": {"accuracy": Interval(0.033, 0.003, 0.063)},
        "b": {"accuracy": Interval(-0.01, -0.1, 0.0)},
    }
    rows = [replace(row, recall=0.02 if row.label == "Oblique" else 0.5) for row in report.per_class]
    by_views = {"1": ViewAccuracy(0.389, 0.3, 0.4, 0.05)}
    replace(report, minus_members=lead, per_class=rows, by_views=by_views).write(folder)
    text = results(bundle)
    assert "+3.3 points (0.3 to 6.3) over `resnet50`, -1.0 points (-10.0 to 0.0) over `b`." in text
    assert "Hardly ever recognized: Oblique (2.0 % of 69)." in text and "| 38.9 % |" in text


def test_results_describe_the_detector(bundle):
    report, text = DetectorReport.read(bundle / DETECTOR), results(bundle)
    assert f"AUROC {report.metrics['auroc'].plain()}" in text and report.protocol.partition(";")[0] in text
    for name, row in report.localization.items():
        assert f"`{name}` {row.pointing.percent()}" in text


def test_write_results_changes_only_the_text_between_the_marks(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{RESULTS_START}\nold\n{RESULTS_END}\nafter\n", encoding="utf-8")
    assert write_results(readme) == readme
    text = readme.read_text(encoding="utf-8")
    assert text == f"before\n{RESULTS_START}\n\n{results()}\n\n{RESULTS_END}\nafter\n"
    write_results(readme)
    assert readme.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("text", ["", RESULTS_START, RESULTS_END, f"{RESULTS_END} {RESULTS_START}"])
def test_write_results_without_marks_raises_invalid_data(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidData, match=r"README\.md lacks the marks"):
        write_results(readme)
    assert readme.read_text(encoding="utf-8") == text


# An installed wheel


def test_render_card_in_installed_wheel_equals_the_checkouts(installed_package):
    assert f"{render_card(BUNDLE / 'resnet50')}\n" == (BUNDLE / "resnet50" / "README.md").read_text(
        encoding="utf-8"
    )


def test_write_results_in_installed_wheel_asks_for_a_checkout(installed_package):
    with pytest.raises(InvalidData, match="needs the project's source checkout"):
        write_results()
