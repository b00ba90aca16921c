"""Write what people read: model cards from model_card.md, the README's results, cards for the Hub."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2  # noqa: F401, as huggingface_hub's templates need it: without it, fail here and by its name

from fracture_lib.data.dataset import LabelledImages
from fracture_lib.errors import InvalidData, InvalidModel
from fracture_lib.hub import BUNDLE, FILES_BY_RUNTIME, HUB_PREFIX, LOCAL_PREFIX, is_repo_id, split_revision
from fracture_lib.io.views import VIEWS
from fracture_lib.labels import CLASSES
from fracture_lib.models.config import read_config
from fracture_lib.models.json_files import read_json
from fracture_lib.models.report import DataSummary, DetectorReport, EvaluationReport, Interval, SplitResult
from fracture_lib.publishing.detector_card import outcomes_table, render_detector_card
from fracture_lib.publishing.markdown import markdown_table, share
from fracture_lib.registry import ALL_MODELS, DETECTOR, ENSEMBLE, MODELS, ModelSpec

__all__ = [
    "EXAMPLE_IMAGE",
    "is_detector",
    "render_card",
    "render_dataset_card",
    "render_space_notebook",
    "render_space_readme",
    "results",
    "source_checkout",
    "write_card",
    "write_results",
]

PACKAGE = Path(__file__).parent.parent
TEMPLATE_FILE = "model_card.md"
RESULTS_START = "<!-- results: written by `fracture cards` -->"
RESULTS_END = "<!-- end of results -->"
EXAMPLE_IMAGE = "synthetic-spiral.png"  # in every model repository, for the Hub's widget
UNSCORED = "not scored yet"  # these weights on the withheld Test folder
UNRECORDED = "not recorded"
HARDLY = 0.1  # chance; a class with a lower recall is hardly ever recognized
# Fingerprint of the 989 images in the Train folder of Bone Break Classification. Only the card of a model
# trained on them describes that dataset.
BONE_BREAK = "996ab84b1acc82c649762981947a66b47aa48e12ac192c5d9cb8f0267baca787"

DATASET_CARD = """---
{{ card_data }}
---

# Fracture types in radiographs

{{ splits.values() | sum }} radiographs of ten fracture types, in {{ n_groups }} groups by {{ grouped_by }}.
{% if grouped_by == "source_group" %}Images of one patient or figure{% else %}Near-duplicates{% endif %} \
share a `source_group`; a group is never in two splits or two folds.

**Not for diagnosis.** Every radiograph shows a fracture, so the classes do not tell whether there is one.
{% if bone_break %}
The images are those of the Train folder of Bone Break Classification (Roboflow Universe, curso-rphcb; CC BY
4.0). They were scraped from the web: labels and the rights to individual images are unverified, some
near-duplicates carry two different labels, some images contain arrows or letters or are CT or MRI panels.
{% endif %}
| split | radiographs |
| --- | --- |
{%- for name, n in splits.items() %}
| {{ name }} | {{ n }} |
{%- endfor %}

| class | radiographs | description |
| --- | --- | --- |
{%- for label, n, description in classes %}
| {{ label }} | {{ n }} | {{ description }} |
{%- endfor %}

Columns: `image`, `label`, `source_group`, and `fold` for cross-validation; `validation` is fold 0.
The dataset's fingerprint is `{{ fingerprint }}`.
"""


class _Metric(NamedTuple):
    key: str  # in `EvaluationReport.metrics`
    title: str
    hub_type: str  # the Hub's name of the metric


METRICS = (
    _Metric("accuracy", "Accuracy", "accuracy"),
    _Metric("top3_accuracy", "Top-3 accuracy", "accuracy"),
    _Metric("macro_f1", "Macro-F1", "f1"),
    _Metric("balanced_accuracy", "Balanced accuracy", "accuracy"),
    _Metric("macro_auroc", "Macro AUROC", "roc_auc"),
    _Metric("negative_log_likelihood", "Negative log-likelihood", "nll"),
    _Metric("brier", "Brier score", "brier_score"),
    _Metric("expected_calibration_error", "Expected calibration error", "expected_calibration_error"),
)


class _TestRow(NamedTuple):
    """Results on the test split, formatted."""

    subset: str
    n: int
    accuracy: str
    macro_f1: str
    top3_accuracy: str


def write_card(folder: str | Path) -> Path:
    """Write README.md of the model or the detector in `folder` and return its path. Raises InvalidModel."""
    path = Path(folder) / "README.md"
    path.write_text(f"{render_card(folder)}\n", encoding="utf-8")
    return path


def render_card(folder: str | Path, repo: str | None = None) -> str:
    """Return the card of the model or the detector in `folder` for the Hub repository `repo`, "owner/name".

    Without `repo`, the card's examples load the model from the bundle or from a folder named as this one.
    Raises InvalidModel if the folder was not written by training.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    folder = Path(folder).resolve()
    if is_detector(folder):
        return render_detector_card(DetectorReport.read(folder), repo)
    config, report = read_config(folder), EvaluationReport.read(folder)
    _check_complete(report, folder)
    assert report.data and report.training  # checked above
    spec, data = MODELS[config.model_name], report.data
    bone_break = data.fingerprint == BONE_BREAK
    place, reference = folder.name, f"{LOCAL_PREFIX}{folder.name}"
    if folder.parent == BUNDLE.resolve():
        place, reference = f"fracture_lib/bundle/{spec.name}", spec.name
    card_data = ModelCardData(
        model_name=f"Fracture classification: {spec.name}",
        license="cc-by-4.0" if bone_break else "unknown",  # other data may have other terms
        language="en",
        library_name=spec.library_name,
        pipeline_tag="image-classification",
        tags=["medical", "radiology", "x-ray", "fracture", "onnx"],
        metrics=["accuracy", "f1", "roc_auc"],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=data.hub or "image-folder",
                dataset_name=_dataset_name(data),
                dataset_split="out-of-fold",
                metric_type=metric.hub_type,
                metric_name=f"{metric.title}, out of fold, n = {report.n}",
                metric_value=report.metrics[metric.key].value,
            )
            for metric in METRICS
        ],
        datasets=[split_revision(data.hub)[0]] if data.hub else None,
        base_model=_base_model(report.training.pretrained),
        widget=[_widget_example(repo)] if repo else None,
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(_find_template()),
        spec=spec,
        config=config,
        report=report,
        classes=CLASSES,
        bone_break=bone_break,
        repo=repo,
        reference=f"{HUB_PREFIX}{repo}" if repo else reference,
        place=place,
        majority=f"{100 * max(row.n for row in report.per_class) / report.n:.1f} %",
        reference_accuracy=_format_reference(spec),
        train_accuracy=_train_accuracy(report),
        test=_test_rows(report.test),
        unscored=UNSCORED,
        views=_describe_views(),
        weak_classes=_weak_classes(report),
        share=share,
        fracatlas="FracAtlas" in (report.training.pretrained or ""),
        metrics=[(metric.title, report.format_metric(metric.key)) for metric in METRICS],
    )
    return str(card).rstrip()


def is_detector(folder: Path) -> bool:
    """Return whether a model folder holds the fracture detector. Raises InvalidModel."""
    return read_json(folder / "config.json").get("model_name") == DETECTOR


def _check_complete(report: EvaluationReport, folder: Path) -> None:
    parts = ("selective_risk", "conformal", "robustness", "data", "training")
    missing = [name for name in parts if getattr(report, name) is None]
    missing += [metric.key for metric in METRICS if metric.key not in report.metrics]
    if missing:
        raise InvalidModel(
            f"{folder.name}/evaluation.json lacks {', '.join(missing)}. Run `fracture remeasure {folder}`, "
            "or train the model again."
        )


def _dataset_name(data: DataSummary) -> str:
    if data.fingerprint == BONE_BREAK:
        return "Bone Break Classification, Train"
    return f"dataset with fingerprint {data.fingerprint[:16]}"


def _base_model(pretrained: str | None) -> str | None:
    """Return the Hub repository of the weights that training started from, "owner/name"."""
    repo, _ = split_revision((pretrained or "").removeprefix(HUB_PREFIX))
    return repo if is_repo_id(repo) else None


def _widget_example(repo: str) -> dict[str, str]:
    return {
        "src": f"https://huggingface.co/{repo}/resolve/main/{EXAMPLE_IMAGE}",
        "example_title": "Synthetic radiograph",
    }


def _find_template() -> Path:
    """Return the card template: in the package of an installed wheel, at the root of a source checkout."""
    installed = PACKAGE / TEMPLATE_FILE
    return installed if installed.is_file() else PACKAGE.parent / TEMPLATE_FILE


def source_checkout() -> Path:
    """Return the root of the source checkout that this package runs from.

    Raises InvalidData if the package is installed without one.
    """
    root = PACKAGE.parent
    if not (root / TEMPLATE_FILE).is_file():
        raise InvalidData("This needs the project's source checkout. Clone the repository and run it there.")
    return root


def render_dataset_card(images: LabelledImages, splits: Mapping[str, int]) -> str:
    """Return the card of a dataset of `images`; `splits` maps the splits to their numbers of images."""
    from huggingface_hub import DatasetCard, DatasetCardData

    card_data = DatasetCardData(
        license="cc-by-4.0" if images.fingerprint == BONE_BREAK else "unknown",
        language="en",
        task_categories=["image-classification"],
        tags=["medical", "radiology", "x-ray", "fracture"],
        pretty_name="Fracture types in radiographs, with grouped splits",
    )
    counts = Counter(images.labels.tolist())
    card = DatasetCard.from_template(
        card_data,
        template_str=DATASET_CARD,
        splits=splits,
        n_groups=len(set(images.groups.tolist())),
        grouped_by=images.grouped_by,
        fingerprint=images.fingerprint,
        bone_break=images.fingerprint == BONE_BREAK,
        classes=[(c.label, counts[c.id], c.description) for c in CLASSES],
    )
    return f"{card}\n"


def render_space_readme(
    readme: Path, repo: str, models: Sequence[str] = (), datasets: Sequence[str] = ()
) -> str:
    """Return the text of the file `readme`, with its header adapted to the Space `repo`.

    `models` are Hub repositories "owner/name@commit": the Space links and preloads them. `datasets` are
    Hub repositories to link.
    """
    from huggingface_hub import RepoCard

    card = RepoCard(readme.read_text(encoding="utf-8"))
    header = card.data
    header["thumbnail"] = f"https://huggingface.co/spaces/{repo}/resolve/main/{header['thumbnail']}"
    if datasets:
        header["datasets"] = list(datasets)
    if models:
        pins = [split_revision(model) for model in models]
        files = ",".join(FILES_BY_RUNTIME["onnx"])
        header["models"] = [model for model, _ in pins]
        header["preload_from_hub"] = [f"{model} {files} {commit}" for model, commit in pins]
    return str(card)


def render_space_notebook(notebook: Path, repo: str) -> str:
    """Return the text of the file `notebook`, which takes its code from the Space `repo`."""
    return notebook.read_text(encoding="utf-8").replace("CODE = None", f'CODE = \\"{repo}\\"', 1)


def _train_accuracy(report: EvaluationReport) -> str:
    if report.training is None or report.training.train_accuracy is None:
        return UNRECORDED
    return share(report.training.train_accuracy)


def _describe_views() -> str:
    """Return how many views an image becomes, and of what."""
    n_whole = sum(view.zoom >= 1 for view in VIEWS)
    return (
        f"Each image becomes {len(VIEWS)} views of 128x128 pixels, some of them mirrored. "
        f"Views of the whole image: {n_whole}; of a part of its longer side: {len(VIEWS) - n_whole}."
    )


def _weak_classes(report: EvaluationReport) -> str:
    """Return a sentence on the classes that are recognized less often than by chance."""
    weak = [row for row in report.per_class if row.recall is not None and row.recall < HARDLY]
    if not weak:
        return f"Every class is recognized in {share(HARDLY)} of its radiographs or more."
    names = ", ".join(f"{row.label} ({share(row.recall)} of {row.n})" for row in weak)
    return f"Hardly ever recognized: {names}."


def _test_rows(test: SplitResult | None) -> list[_TestRow]:
    """Return the rows of a report on the test split; none if it was not scored."""
    if test is None:
        return []
    subsets = {"all of Test": test, "without near-duplicates in Train": test.deduplicated}
    return [
        _TestRow(
            subset,
            result.n,
            *(result.metrics[key].percent() for key in ("accuracy", "macro_f1", "top3_accuracy")),
        )
        for subset, result in subsets.items()
        if result
    ]


def _format_reference(spec: ModelSpec) -> str:
    return "" if spec.reference_accuracy is None else f"{100 * spec.reference_accuracy:.2f} %"


def results(bundle: Path = BUNDLE) -> str:
    """Return the README's results of the bundle's models in Markdown. Raises InvalidModel."""
    reports = {name: EvaluationReport.read(bundle / name) for name in ALL_MODELS}
    ensemble, detector = reports[ENSEMBLE], DetectorReport.read(bundle / DETECTOR)
    parts = [
        _accuracy_table(reports),
        _ensemble_note(ensemble),
        f"{_weak_classes(ensemble)} This is the recall of `{ENSEMBLE}`; the cards have that of each model.",
        "### Fracture detector",
        _describe_detector(detector),
        outcomes_table(detector),
        _describe_maps(detector),
    ]
    return "\n\n".join(parts)


def _accuracy_table(reports: Mapping[str, EvaluationReport]) -> str:
    header = (
        "model",
        "training images",
        "out of fold (95 % interval)",
        "Test",
        "original project, its own test",
        "fast",
        "macro-F1",
        "top-3 accuracy",
        "calibration error",
    )
    rows = []
    for name, report in reports.items():
        test = [f"{row.subset}, n = {row.n}: {row.accuracy}" for row in _test_rows(report.test)]
        fast = (report.by_views or {}).get("1")
        rows.append(
            [
                f"`{name}`",
                _train_accuracy(report) if name in MODELS else "",
                report.accuracy.percent(),
                "; ".join(test) or UNSCORED,
                _format_reference(MODELS[name]) if name in MODELS else "",
                share(fast.value) if fast else UNRECORDED,
                report.metrics["macro_f1"].percent(),
                report.metrics["top3_accuracy"].percent(),
                report.metrics["expected_calibration_error"].plain(),
            ]
        )
    return markdown_table(header, rows)


def _ensemble_note(report: EvaluationReport) -> str:
    """Return how the ensemble is measured, and by how much it leads its members."""
    text = f"`{ENSEMBLE}` was scored {report.protocol}."
    if not report.minus_members:
        return text
    leads = ", ".join(
        f"{_points(differences['accuracy'])} over `{name}`"
        for name, differences in report.minus_members.items()
    )
    return f"{text} Its lead in accuracy, paired by image: {leads}."


def _describe_detector(report: DetectorReport) -> str:
    auroc, precision = (report.metrics[key].plain() for key in ("auroc", "average_precision"))
    return (
        f"`{DETECTOR}`: AUROC {auroc}, average precision {precision}; {report.protocol.partition(';')[0]}. "
        f"n = {report.n}, of which {report.n_fractured} show a fracture."
    )


def _describe_maps(report: DetectorReport) -> str:
    """Return how often the hottest place of each map lies in a box of a radiologist."""
    center = next(iter(report.localization.values())).pointing_center.percent()
    shares = ", ".join(f"`{name}` {row.pointing.percent()}" for name, row in report.localization.items())
    return (
        "What an overlay is worth: the share of FracAtlas' fractured radiographs in which its hottest place "
        f"lies in a box that radiologists drew. {shares}; the center of the image {center}."
    )


def _points(difference: Interval) -> str:
    """Return a difference of shares as "+4.4 points (1.8 to 6.7)"."""
    text = difference.percent().replace(" %", " points", 1)
    return text if text.startswith("-") else f"+{text}"


def write_results(readme: Path | None = None, bundle: Path = BUNDLE) -> Path:
    """Write the results between the two marks in `readme` and return its path.

    The default is README.md of the source checkout. Raises InvalidData if there is none, or no marks, and
    InvalidModel.
    """
    readme = readme or source_checkout() / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, start, rest = text.partition(RESULTS_START)
    _, end, after = rest.partition(RESULTS_END)
    if not (start and end):
        raise InvalidData(f"{readme.name} lacks the marks {RESULTS_START} and {RESULTS_END}. Add them.")
    readme.write_text(f"{before}{start}\n\n{results(bundle)}\n\n{end}{after}", encoding="utf-8")
    return readme
