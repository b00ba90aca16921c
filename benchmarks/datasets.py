"""Measure how time and memory grow with the number of images: `python -m benchmarks.datasets` (Unix only).

Each step runs in a process of its own, on the same JPEGs: random blobs as large as what training keeps of a
radiograph, every tenth a mirrored copy of the one before. A cell holds the CPU time and the peak memory.
"""

import argparse
import csv
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageOps

from fracture_lib.labels import CLASSES

SIZE = (140, 200)  # of an image


def write_images(folder: Path, n: int) -> None:
    """Write n JPEGs in class folders and the manifest of their groups."""
    rows = []
    for i in range(n):
        group = i - (i % 10 == 9)
        blobs = np.random.default_rng(group).integers(0, 256, (10, 7), np.uint8)
        image = Image.fromarray(blobs).resize(SIZE)
        path = folder / CLASSES[i // 10 % 10].label / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        (image if group == i else ImageOps.mirror(image)).save(path)
        rows.append((path.relative_to(folder).as_posix(), group))
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "source_group"), *rows])


def group_near_duplicates(data: Path, scratch: Path) -> None:
    from fracture_lib.data.duplicates import near_duplicate_groups

    near_duplicate_groups(sorted(data.rglob("*.jpg")))


def train_one_epoch(data: Path, scratch: Path) -> None:
    """Train the PyTorch CNN twice for one epoch; score a fifth of the images and their perturbed copies."""
    from fracture_lib.training.recipes import RECIPES
    from fracture_lib.training.trainer import train

    recipe = replace(RECIPES["pytorch-cnn"], epochs=1)
    train("pytorch-cnn", data, scratch, n_measured_folds=1, recipe=recipe)


def evaluate_model(data: Path, scratch: Path) -> None:
    from fracture_lib.evaluation.report import evaluate

    evaluate("pytorch-cnn", data)


def write_shards(data: Path, scratch: Path) -> None:
    from fracture_lib.data.dataset import load_dataset_folder
    from fracture_lib.publishing.push import collect_dataset_files

    collect_dataset_files(load_dataset_folder(data), scratch)


STEPS: dict[str, Callable[[Path, Path], None]] = {
    "group near-duplicates": group_near_duplicates,
    "`train` for one epoch": train_one_epoch,
    "`evaluate`": evaluate_model,
    "files of `push dataset`": write_shards,
}


def measure(step: str, data: Path) -> str:
    """Run a step in a new process; return its CPU time and peak memory."""
    arguments = [sys.executable, "-m", "benchmarks.datasets", "--step", step, "--images", str(data)]
    _, status, usage = os.wait4(os.spawnv(os.P_NOWAIT, sys.executable, arguments), 0)
    if status:
        raise SystemExit(f"{step} failed.")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return f"{usage.ru_utime + usage.ru_stime:,.0f} s, {usage.ru_maxrss * unit / 1e6:,.0f} MB"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--images", type=Path, help="folder for the images (default: a temporary one)")
    parser.add_argument("--step", choices=STEPS, help="run this step alone, without measuring it")
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as scratch:
        if options.step:
            STEPS[options.step](options.images, Path(scratch))
            return
        print("| images |", " | ".join(STEPS), "|\n|" + " --- |" * (len(STEPS) + 1))
        for n in options.sizes:
            data = (options.images or Path(scratch)) / str(n)
            if not data.exists():
                write_images(data, n)
            print(f"| {n:,} |", " | ".join(measure(step, data) for step in STEPS), "|", flush=True)


if __name__ == "__main__":
    main()
