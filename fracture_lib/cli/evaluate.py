"""`fracture evaluate`: score a model on a folder of labelled images."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fracture_lib.cli.options import DATA_NOTE, MODEL_NOTE, Commands, add_command, add_runtime
from fracture_lib.errors import InvalidArgument, InvalidData
from fracture_lib.hub import BUNDLE, HUB_PREFIX, resolve_model
from fracture_lib.models.json_files import to_json
from fracture_lib.models.report import EvaluationReport, store_test_result
from fracture_lib.registry import ENSEMBLE, ENSEMBLE_MEMBERS, MODELS

__all__ = ["add_commands", "print_report"]

# Largest share of near-duplicates of training images in a test set. That of Bone Break has 20 %.
MAX_KNOWN_SHARE = 0.5


def add_commands(commands: Commands) -> None:
    parser = add_command(
        commands,
        "evaluate",
        run,
        description="Score a model on labelled images and print its metrics with 95 % intervals.",
        notes=[MODEL_NOTE, DATA_NOTE],
        examples=[
            "fracture evaluate --model resnet50 --data DIR --split Test --exclude-duplicates-of Train",
            "fracture evaluate --model hf-hub:owner/name --data hf-hub:owner/dataset --out report.json",
            "fracture evaluate --model local-dir:OUT/resnet50 --data DIR --split Test --save-as-test",
        ],
        extra="train",
    )
    parser.add_argument("--model", required=True, help="model to score (required)")
    parser.add_argument("--data", required=True, help="labelled images (required)")
    parser.add_argument("--split", help="only the images of this split, such as Test (default: all images)")
    parser.add_argument(
        "--exclude-duplicates-of",
        metavar="SPLIT",
        help="score a second time without near-duplicates of images in this split, such as Train "
        "(default: once, on all images)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="also write the full report as JSON (default: only print)",
    )
    parser.add_argument(
        "--save-as-test",
        action="store_true",
        help="store the report as the test result of a bundled or local model and rewrite its card; "
        "needs --split Test (default: the model stays as it is)",
    )
    add_runtime(parser)


def run(options: argparse.Namespace) -> int:
    from fracture_lib.evaluation.report import evaluate, split_result
    from fracture_lib.publishing.cards import write_card

    test_folder, note = None, ""
    if options.save_as_test:  # checked before the evaluation, which takes long
        if (options.split or "").lower() != "test":
            raise InvalidArgument("--save-as-test stores a test result. Add --split Test.")
        test_folder, *member_folders = _model_folders(options.model)
        note = _check_test_images(options.data, options.split, test_folder, member_folders)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    report = evaluate(
        options.model, options.data, options.split, options.runtime, options.exclude_duplicates_of
    )
    if options.out:
        options.out.write_text(to_json(report.to_dict()), encoding="utf-8")  # it may be a pipe
    print_report(report)
    if report.deduplicated:
        print(f"\nWithout near-duplicates of images in {options.exclude_duplicates_of}:")
        print_report(report.deduplicated)
    if test_folder:
        store_test_result(test_folder, split_result(replace(report, protocol=report.protocol + note)))
        if report.model in MODELS:
            write_card(test_folder)
        print(f"\nSaved as the test result of {test_folder}.")
    return 0


def _model_folders(reference: str) -> list[Path]:
    """Return the folder of a bundled or local model, and those of an ensemble's members.

    Raises InvalidArgument for one on the Hub, even if the bundle takes its place while the Hub is
    unreachable.
    """
    members = ENSEMBLE_MEMBERS if reference == ENSEMBLE else (reference,)
    is_configured = any(name in MODELS and MODELS[name].configured_repo for name in members)
    if is_configured or reference.startswith(HUB_PREFIX):
        raise InvalidArgument(f"--save-as-test needs a bundled or local model; {reference} is on the Hub.")
    folders = [resolve_model(name).folder for name in members]
    return [BUNDLE / ENSEMBLE, *folders] if reference == ENSEMBLE else folders


def _check_test_images(data: str, split: str, folder: Path, member_folders: Sequence[Path]) -> str:
    """Return what the protocol must add about images that the model in `folder` was trained on.

    Raises InvalidData if the dataset has no split folders, or if most images of its split were trained on.
    """
    from fracture_lib.data.dataset import load_dataset_folder
    from fracture_lib.evaluation.training_images import find_training_images

    images = load_dataset_folder(data, split)
    if images.split is None:
        raise InvalidData(
            "--save-as-test needs a split folder, and this dataset has none. Put the test images into Test."
        )
    trained_on = EvaluationReport.read(folder).data
    if trained_on and trained_on.fingerprint == images.fingerprint:
        raise InvalidData("The model was trained on these images, so they give no test result.")
    n, n_known = len(images.paths), int(find_training_images(images, data, [folder, *member_folders]).sum())
    if n_known > MAX_KNOWN_SHARE * n:
        raise InvalidData(
            f"{n_known} of {n} images are near-duplicates of training images, so they give no test result. "
            "Remove these images from the split."
        )
    return f"; {n_known} of {n} are near-duplicates of training images" if n_known else ""


def print_report(report: EvaluationReport) -> None:
    """Print the number of images, the protocol and the metrics with their intervals."""
    print(f"{report.model}: {report.n} images in {report.n_groups} groups; {report.protocol}")
    for name in report.metrics:
        print(f"  {name:<27} {report.format_metric(name)}")
