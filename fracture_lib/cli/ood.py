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
        description="Fit and measure an out-of-distribution detector. X-rays and other images fit it; only "
        "the labelled X-rays set the thresholds.",
        notes=[DATA_NOTE],
        examples=[
            "fracture fit-ood --data DIR --others OTHERS --out OUT/ood",
            "fracture fit-ood --data DIR --others OTHERS --radiographs ATLAS --out fracture_lib/bundle/ood",
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
        help="folder of <kind>/* with images that are not bone X-rays; those whose names differ only in the "
        "digits at the end count as one source (required)",
    )
    parser.add_argument(
        "--radiographs",
        metavar="DIR",
        help="folder of FracAtlas; a sample of its X-rays joins the fit and is measured (default: none)",
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
    from fracture_lib.data.fracatlas import load_fracatlas
    from fracture_lib.evaluation.ood import fit_ood_detector

    images = load_dataset_folder(options.data, options.split)
    radiographs = load_fracatlas(options.radiographs) if options.radiographs else None
    backbone = InferencePipeline().ood_backbone()

    def features(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        feature_map = backbone.forward(pixels[None]).features
        assert feature_map is not None  # only an ensemble has none
        return feature_map[0, 0]

    report = fit_ood_detector(images, options.others, features, options.out, radiographs)
    print(f"{report.n} X-rays in {report.n_groups} groups; {report.protocol}")
    print(f"  {'X-rays rejected':<27} {report.false_rejection.percent()}")
    if report.radiographs:
        print(f"  {'other X-rays rejected':<27} {report.radiographs.percent()}, n = {report.radiographs.n}")
    for kind, rate in report.detection.items():
        print(f"  {kind + ' detected':<27} {rate.percent()}, n = {rate.n}")
    print(f"\nWrote the detector to {options.out}.")
    return 0
