"""`fracture evaluate`: score a model on a folder of labelled images."""

import argparse
from dataclasses import replace
from pathlib import Path

from fracture_lib.cli.options import DATA_NOTE, MODEL_NOTE, Commands, add_command, add_runtime
from fracture_lib.errors import InvalidArgument, InvalidData
from fracture_lib.hub import BUNDLE, Runtime, resolve_model
from fracture_lib.models.json_files import to_json
from fracture_lib.models.report import EvaluationReport
from fracture_lib.registry import ENSEMBLE, ENSEMBLE_MEMBERS, MODELS

__all__ = ["add_commands", "print_report"]


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
    from fracture_lib.evaluation.report import evaluate
    from fracture_lib.publishing.cards import write_card

    test_folder = None
    if options.save_as_test:  # checked before the evaluation, which takes long
        if (options.split or "").lower() != "test":
            raise InvalidArgument("--save-as-test stores a test result. Add --split Test.")
        test_folder = _model_folder(options.model, options.runtime)
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
        _save_as_test(report, test_folder)
        if report.model in MODELS:
            write_card(test_folder)
        print(f"\nSaved as the test result of {test_folder}.")
    return 0


def _model_folder(reference: str, runtime: Runtime) -> Path:
    """Return the folder of a bundled or local model. Raises InvalidArgument for one on the Hub."""
    members = ENSEMBLE_MEMBERS if reference == ENSEMBLE else [reference]
    sources = [resolve_model(name, runtime) for name in members]
    if any(source.kind == "hub" for source in sources):
        raise InvalidArgument(f"--save-as-test needs a bundled or local model; {reference} is on the Hub.")
    return BUNDLE / ENSEMBLE if reference == ENSEMBLE else sources[0].folder


def _save_as_test(report: EvaluationReport, folder: Path) -> None:
    stored = EvaluationReport.read(folder)
    if stored.data and report.data and stored.data.fingerprint == report.data.fingerprint:
        raise InvalidData("The model was trained on these images, so this was not saved as a test result.")
    replace(stored, test=report).write(folder)


def print_report(report: EvaluationReport) -> None:
    """Print the number of images, the protocol and the metrics with their intervals."""
    print(f"{report.model}: {report.n} images in {report.n_groups} groups; {report.protocol}")
    for name in report.metrics:
        print(f"  {name:<27} {report.format_metric(name)}")
