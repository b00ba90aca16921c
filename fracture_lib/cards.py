"""Write a model folder's README.md, its card on the Hub, from model_card.md and evaluation.json."""

from pathlib import Path

from fracture_lib.config import read_config, read_json
from fracture_lib.labels import CLASSES
from fracture_lib.registry import MODELS

__all__ = ["percent", "write_card"]

TEMPLATE = Path(__file__).parent.parent / "model_card.md"
# Fingerprint of the 989 films in the Train folder of Bone Break Classification: only a model trained
# on them gets a card that says so.
BONE_BREAK = "996ab84b1acc82c649762981947a66b47aa48e12ac192c5d9cb8f0267baca787"

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
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    folder = Path(folder)
    config, evaluation = read_config(folder), read_json(folder / "evaluation.json")
    spec = MODELS[config["model_name"]]
    results = evaluation["metrics"]
    fingerprint = evaluation["data"]["fingerprint"]
    bone_break = fingerprint == BONE_BREAK
    dataset = "Bone Break Classification, Train" if bone_break else f"films {fingerprint[:16]}"
    data = ModelCardData(
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
                dataset_type="image-folder",
                dataset_name=dataset,
                dataset_split="out-of-fold",
                metric_type=kind,
                metric_name=f"{title}, out of fold, n = {evaluation['n']}",
                metric_value=results[key]["value"],
            )
            for key, title, kind, _ in METRICS
        ],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        spec=spec,
        config=config,
        evaluation=evaluation,
        classes=CLASSES,
        bone_break=bone_break,
        majority=f"{max(row['n'] for row in evaluation['per_class']) / evaluation['n']:.1%}",
        metrics=[
            (title, percent(results[key]) if in_percent else _plain(results[key]))
            for key, title, _, in_percent in METRICS
        ],
    )
    path = folder / "README.md"
    path.write_text(str(card).rstrip() + "\n", encoding="utf-8")
    return path
