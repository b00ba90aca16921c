"""`fracture fit-ood`: fit the detector of images that do not look like a bone X-ray."""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fracture_lib.cli.options import DATA_NOTE, Commands, add_command
from fracture_lib.inference.pipeline import InferencePipeline

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    parser = add_command(
        commands,
        "fit-ood",
        run,
        description="Fit and measure an out-of-distribution detector. Only the X-rays set the thresholds; "
        "the other images measure the detection rate.",
        notes=[DATA_NOTE],
        examples=[
            "fracture fit-ood --data DIR --others OTHERS --out OUT/ood",
            "fracture fit-ood --data DIR --others OTHERS --out fracture_lib/bundle/ood",
        ],
        extra="train",
    )
    parser.add_argument("--data", required=True, help="labelled X-rays (required)")
    parser.add_argument("--split", default="Train", help="split of the X-rays to use (default: %(default)s)")
    parser.add_argument(
        "--others",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder of <kind>/* with images that are not bone X-rays (required)",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder to write the detector to; that in the bundle is the one that serves (required)",
    )


def run(options: argparse.Namespace) -> int:
    from fracture_lib.data.dataset import load_dataset_folder
    from fracture_lib.evaluation.ood import fit_ood_detector

    images = load_dataset_folder(options.data, options.split)
    backbone = InferencePipeline().ood_backbone()

    def features(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        feature_map = backbone.forward(pixels).features
        assert feature_map is not None  # only an ensemble has none
        return feature_map

    report = fit_ood_detector(images, options.others, features, options.out)
    print(f"{report.n} X-rays in {report.n_groups} groups; {report.protocol}")
    print(f"  {'X-rays rejected':<27} {report.false_rejection.percent()}")
    for kind, rate in report.detection.items():
        print(f"  {kind + ' detected':<27} {rate.percent()}, n = {rate.n}")
    print(f"\nWrote the detector to {options.out}.")
    return 0
