"""`fracture train-detector`: train and measure the fracture detector."""

import argparse
from dataclasses import replace
from pathlib import Path

from fracture_lib.cli.options import Commands, add_command, add_training_options, positive_int
from fracture_lib.hub import HUB_PREFIX
from fracture_lib.models.report import DetectorReport, OutcomeRates

__all__ = ["add_commands"]

DATA_NOTE = """FRACATLAS is a folder with the images of FracAtlas and a manifest.csv that has the columns
  path, label, region, view, boxes and source_group"""
WEIGHTS_NOTE = f"""WEIGHTS is one of
  a safetensors file of an EfficientNet-Lite0 with timm's names
  {HUB_PREFIX}owner/name[@revision], such as {HUB_PREFIX}timm/tf_efficientnet_lite0.in1k"""


def add_commands(commands: Commands) -> None:
    parser = add_command(
        commands,
        "train-detector",
        run,
        description="Train the fracture detector, measure it and its heatmap, and write its folder with a "
        "card. The same command resumes a stopped training.",
        notes=[DATA_NOTE, WEIGHTS_NOTE],
        examples=[
            "fracture train-detector --data FRACATLAS --out OUT --pretrained FILE.safetensors",
            "fracture train-detector --data FRACATLAS --out OUT --pretrained FILE.safetensors "
            "--external BONE_BREAK",
        ],
        extra="train",
    )
    parser.set_defaults(resume_hint=" The same command resumes the training.")
    parser.add_argument(
        "--data", required=True, metavar="FRACATLAS", help="radiographs with and without fractures (required)"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder to write or replace (required)"
    )
    parser.add_argument(
        "--pretrained",
        required=True,
        metavar="WEIGHTS",
        help="weights that the training starts from (required)",
    )
    parser.add_argument(
        "--external",
        metavar="DIR",
        help="labelled radiographs of fractures from another source, as evaluate takes them; they are only "
        "measured (default: none)",
    )
    parser.add_argument(
        "--n-overlays",
        type=positive_int,
        metavar="N",
        help="fractured radiographs on which the overlays of the bundled models are measured (default: all)",
    )
    add_training_options(parser)


def run(options: argparse.Namespace) -> int:
    from fracture_lib.publishing.cards import write_card
    from fracture_lib.training.detector import DETECTOR_RECIPE, train_detector

    recipe = DETECTOR_RECIPE
    if options.epochs:
        recipe = replace(recipe, epochs=options.epochs)
    report = train_detector(
        options.data,
        options.out,
        options.pretrained,
        seed=options.seed,
        recipe=recipe,
        external=options.external,
        n_overlays=options.n_overlays,
        keep_checkpoints=options.keep_checkpoints,
    )
    card = write_card(options.out)
    _print_report(report)
    print(f"\nWrote the detector to {options.out} and its card to {card}.")
    return 0


def _print_report(report: DetectorReport) -> None:
    print(f"{report.n} images in {report.n_groups} groups, {report.n_fractured} fractured; {report.protocol}")
    for name, interval in report.metrics.items():
        print(f"  {name.replace('_', ' '):<30} {interval.plain()}")
    print(f"  {'fractures missed':<30} {report.missed.percent()}")
    for name, rates in report.outcomes.items():
        _print_rates(name, rates)
    for name, rates in report.external.items():
        _print_rates(f"another source, {name}", rates)
    for name, found in report.localization.items():
        print(f"  {f'heatmap of {name}':<30} n = {found.n}")
        for title, values in (
            ("points at a fracture", (found.pointing, found.pointing_center, found.pointing_random)),
            ("heat inside the boxes", (found.inside, found.inside_center, found.inside_random)),
        ):
            value, center, chance = (interval.percent() for interval in values)
            print(f"    {title:<28} {value}; centre {center}; random place {chance}")


def _print_rates(name: str, rates: OutcomeRates) -> None:
    shares = ", ".join(f"{key} {100 * getattr(rates, key):.1f} %" for key in ("visible", "uncertain", "none"))
    print(f"  {name:<30} {shares}, n = {rates.n}")
