"""Write what people read: each model's card from model_card.md, the README's table, cards for the Hub."""

from collections import Counter
from pathlib import Path

from fracture_lib.config import read_config, read_json
from fracture_lib.errors import InvalidData
from fracture_lib.hub import FILES_OF, is_hub_id
from fracture_lib.labels import CLASSES
from fracture_lib.registry import ENSEMBLE, MODELS

__all__ = [
    "EXAMPLE_FILM",
    "percent",
    "render_card",
    "render_dataset_card",
    "render_space_readme",
    "results_table",
    "write_card",
    "write_results_table",
]

TEMPLATE = Path(__file__).parent.parent / "model_card.md"
TABLE_BEGINS = "<!-- results: written by `python -m fracture_lib cards` -->"
TABLE_ENDS = "<!-- end of results -->"
EXAMPLE_FILM = "drawn-spiral.png"  # in every repository, for the Hub's widget
WITHHELD = "withheld, not yet scored"
# Fingerprint of the 989 films in the Train folder of Bone Break Classification: only a model trained
# on them gets a card that says so.
BONE_BREAK = "996ab84b1acc82c649762981947a66b47aa48e12ac192c5d9cb8f0267baca787"

DATASET_CARD = """---
{{ card_data }}
---

# Fracture types in radiographs

{{ splits.values() | sum }} films of ten types of fracture, in {{ groups }} groups by {{ grouped_by }}:
pictures of one patient or figure share a `source_group`, and a group is never in two splits or two folds.

**Not for diagnosis.** There is no class "no fracture".
{% if bone_break %}
The films are those of the Train folder of Bone Break Classification (Roboflow Universe, curso-rphcb; CC BY
4.0). They were scraped from the web: labels and the rights to single pictures are unverified, some near
copies carry two different labels, some pictures carry arrows or letters or are CT or MRI panels.
{% endif %}
| split | films |
| --- | --- |
{%- for name, n in splits.items() %}
| {{ name }} | {{ n }} |
{%- endfor %}

| class | films | what it is |
| --- | --- | --- |
{%- for label, n, description in classes %}
| {{ label }} | {{ n }} | {{ description }} |
{%- endfor %}

Columns: `image`, `label`, `source_group`, and `fold` for cross-validation; `validation` is fold 0.
The films' fingerprint is `{{ fingerprint }}`.
"""

# key in evaluation.json, name in the card, the Hub's metric type, is it shown in per cent
METRICS = (
    ("accuracy", "Accuracy", "accuracy", True),
    ("top3_accuracy", "Top-3 accuracy", "accuracy", True),
    ("macro_f1", "Macro-F1", "f1", True),
    ("balanced_accuracy", "Balanced accuracy", "accuracy", True),
    ("macro_auroc", "Macro AUROC", "roc_auc", False),
    ("negative_log_likelihood", "Negative log-likelihood", "nll", False),
    ("brier", "Brier score", "brier_score", False),
    ("expected_calibration_error", "Expected calibration error", "expected_calibration_error", False),
)


def percent(metric):
    """{"value", "low", "high"} in 0..1 -> "31.2 % (28.0 to 34.5)"."""
    return f"{100 * metric['value']:.1f} % ({100 * metric['low']:.1f} to {100 * metric['high']:.1f})"


def _plain(metric):
    return f"{metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"


def write_card(folder):
    """Render README.md of the model in `folder` and return its path. Raises InvalidModel."""
    path = Path(folder) / "README.md"
    path.write_text(f"{render_card(folder)}\n", encoding="utf-8")
    return path


def render_card(folder, repo=None):
    """Return the text of the card of the model in `folder`, as it will stand in the Hub's `repo`.

    Without `repo` its examples read the folder in the bundle. Raises InvalidModel.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    folder = Path(folder)
    config, evaluation = read_config(folder), read_json(folder / "evaluation.json")
    spec = MODELS[config["model_name"]]
    results, data, training = (evaluation[key] for key in ("metrics", "data", "training"))
    bone_break = data["fingerprint"] == BONE_BREAK
    dataset = "Bone Break Classification, Train" if bone_break else f"films {data['fingerprint'][:16]}"
    hub_data = {"datasets": [data["hub"].partition("@")[0]]} if data.get("hub") else {}
    start = training["pretrained"]
    base = {"base_model": start if is_hub_id(start) else spec.pretrained} if start else {}
    widget = [{"src": f"https://huggingface.co/{repo}/resolve/main/{EXAMPLE_FILM}", "example_title": "Drawn"}]
    card_data = ModelCardData(
        model_name=f"Fracture classification: {spec.name}",
        license="cc-by-4.0",
        language="en",
        library_name=spec.library_name,
        pipeline_tag="image-classification",
        tags=["medical", "radiology", "x-ray", "fracture", "onnx"],
        metrics=["accuracy", "f1", "roc_auc"],
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=data.get("hub") or "image-folder",
                dataset_name=dataset,
                dataset_split="out-of-fold",
                metric_type=kind,
                metric_name=f"{title}, out of fold, n = {evaluation['n']}",
                metric_value=results[key]["value"],
            )
            for key, title, kind, _ in METRICS
        ],
        **hub_data,
        **base,
        **({"widget": widget} if repo else {}),
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        spec=spec,
        config=config,
        evaluation=evaluation,
        classes=CLASSES,
        bone_break=bone_break,
        repo=repo,
        majority=f"{max(row['n'] for row in evaluation['per_class']) / evaluation['n']:.1%}",
        percent=percent,
        test=_test_rows(evaluation["test"]),
        withheld=WITHHELD,
        metrics=[
            (title, percent(results[key]) if in_percent else _plain(results[key]))
            for key, title, _, in_percent in METRICS
        ],
    )
    return str(card).rstrip()


def render_dataset_card(films, splits):
    """Return the card of a dataset made of `films` (data.Films); `splits` is {name: number of films}."""
    from huggingface_hub import DatasetCard, DatasetCardData

    data = DatasetCardData(
        license="cc-by-4.0",
        language="en",
        task_categories=["image-classification"],
        tags=["medical", "radiology", "x-ray", "fracture"],
        pretty_name="Fracture types in radiographs, split by patient and figure",
    )
    counts = Counter(films.labels.tolist())
    card = DatasetCard.from_template(
        data,
        template_str=DATASET_CARD,
        splits=splits,
        groups=len(set(films.groups.tolist())),
        grouped_by=films.grouped_by,
        fingerprint=films.fingerprint,
        bone_break=films.fingerprint == BONE_BREAK,
        classes=[(c.label, counts[c.id], c.description) for c in CLASSES],
    )
    return f"{card}\n"


def render_space_readme(readme, repo, models=(), datasets=()):
    """Return the text of the file `readme` with the header of the Space `repo` that draws from `models`.

    `models` are Hub ids "owner/name@commit"; they are linked from the Space and preloaded with it.
    `datasets` are Hub ids to link.
    """
    from huggingface_hub import RepoCard

    card = RepoCard(readme.read_text(encoding="utf-8"))
    card.data.thumbnail = f"https://huggingface.co/spaces/{repo}/resolve/main/{card.data.thumbnail}"
    if datasets:
        card.data.datasets = list(datasets)
    if models:
        card.data.models = [model.partition("@")[0] for model in models]
        files = ",".join(FILES_OF["onnx"])
        card.data.preload_from_hub = [
            f"{repo} {files} {commit}" for repo, _, commit in (model.partition("@") for model in models)
        ]
    return str(card)


def _test_rows(test):
    """[(which films, n, accuracy, macro-F1, top-3)] of a recorded Test report; empty without one."""
    parts = {"all of Test": test, "without a near copy in training": test and test.get("clean")}
    return [
        (which, part["n"], *(percent(part["metrics"][k]) for k in ("accuracy", "macro_f1", "top3_accuracy")))
        for which, part in parts.items()
        if part
    ]


def results_table(bundle):
    """Return the Markdown table of all models and their ensemble from the folder `bundle`."""
    lines = [
        "| model | accuracy out of fold (95 % interval) | macro-F1 | top-3 | calibration error | n "
        "| Test | reference work, its own split |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in (*MODELS, ENSEMBLE):
        evaluation = read_json(bundle / name / "evaluation.json")
        results, test = evaluation["metrics"], _test_rows(evaluation["test"])
        reference = f"{100 * MODELS[name].reference_accuracy:.2f} %" if name in MODELS else ""
        cells = [
            f"`{name}`",
            percent(results["accuracy"]),
            percent(results["macro_f1"]),
            percent(results["top3_accuracy"]),
            _plain(results["expected_calibration_error"]),
            str(evaluation["n"]),
            "; ".join(f"{row[0]}, n = {row[1]}: {row[2]}" for row in test) or WITHHELD,
            reference,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_results_table(readme, bundle):
    """Replace what stands between the two marks in the file `readme`. Raises InvalidData."""
    text = readme.read_text(encoding="utf-8")
    before, begins, rest = text.partition(TABLE_BEGINS)
    _, ends, after = rest.partition(TABLE_ENDS)
    if not (begins and ends):
        raise InvalidData(f"{readme.name} lacks the marks {TABLE_BEGINS} and {TABLE_ENDS}.")
    table = results_table(bundle)
    readme.write_text(f"{before}{begins}\n\n{table}\n\n{ends}{after}", encoding="utf-8")
