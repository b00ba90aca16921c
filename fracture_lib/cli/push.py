"""`fracture push`: publish a model, a dataset or the page on the Hugging Face Hub."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from fracture_lib.cli.options import DATA_NOTE, Commands, Parser, add_command, add_group, positive_int
from fracture_lib.errors import InvalidArgument
from fracture_lib.hub import BUNDLE
from fracture_lib.registry import DETECTOR, MODELS

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    group = add_group(
        commands,
        "push",
        description="Publish a model, a dataset or the page on the Hugging Face Hub. A push is one commit.  "
        "The token is that of `hf auth login` or the environment variable HF_TOKEN.",
    )
    _add_model(group)
    _add_dataset(group)
    _add_space(group)


def _add_model(commands: Commands) -> None:
    parser = add_command(
        commands,
        "model",
        run_model,
        description="Publish a trained model with its card.",
        examples=[
            "fracture push model --folder OUT/pytorch-cnn --repo OWNER/NAME --dry-run",
            "fracture push model --folder resnet50 --repo OWNER/NAME --private",
        ],
        extra="hub",
    )
    parser.add_argument(
        "--folder",
        required=True,
        metavar="DIR",
        help=f"model folder written by train, or one of the bundle: {', '.join(MODELS)} (required)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="also replace a model that was measured to be better (default: keep the better one)",
    )
    _add_repository_options(parser)


def run_model(options: argparse.Namespace) -> int:
    from fracture_lib.publishing.push import collect_model_files

    folder = BUNDLE / options.folder if options.folder in (*MODELS, DETECTOR) else Path(options.folder)
    return _push(options, collect_model_files(folder, options.repo), "model", force=options.force)


def _add_dataset(commands: Commands) -> None:
    parser = add_command(
        commands,
        "dataset",
        run_dataset,
        description="Publish labelled images as a dataset with grouped splits.",
        notes=[
            DATA_NOTE,
            "The Parquet files, of about 100 MB each, are first written to the temporary folder; the "
            "environment variable TMPDIR names another.",
        ],
        examples=["fracture push dataset --data DIR --split Train --repo OWNER/NAME --private"],
        extra="hub",
    )
    parser.add_argument("--data", required=True, help="labelled images (required)")
    parser.add_argument(
        "--split", help="only the images of this split, which are split again by group (default: all images)"
    )
    parser.add_argument(
        "--n-folds",
        type=positive_int,
        default=5,
        metavar="N",
        help="number of folds; the first becomes the split validation (default: %(default)s)",
    )
    _add_repository_options(parser)


def run_dataset(options: argparse.Namespace) -> int:
    from fracture_lib.data.dataset import load_dataset_folder
    from fracture_lib.publishing.push import collect_dataset_files

    images = load_dataset_folder(options.data, options.split)
    with TemporaryDirectory() as folder:
        return _push(options, collect_dataset_files(images, Path(folder), options.n_folds), "dataset")


def _add_space(commands: Commands) -> None:
    parser = add_command(
        commands,
        "space",
        run_space,
        description="Publish the page as a Space. A new Space runs on ZeroGPU, where a free account may host "
        "two. The page classifies on the CPU and never waits for a GPU.",
        examples=[
            "fracture push space --repo OWNER/SPACE",
            "fracture push space --repo OWNER/SPACE --hardware cpu-basic",
            "fracture push space --repo OWNER/SPACE --models OWNER/NAME@COMMIT --datasets OWNER/DATASET",
        ],
        extra="hub",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=[],
        metavar="OWNER/NAME@COMMIT",
        help="models that the Space downloads from the Hub (default: the bundle serves)",
    )
    parser.add_argument(
        "--datasets",
        nargs="+",
        default=[],
        metavar="OWNER/NAME",
        help="datasets that the Space's page on the Hub links to (default: none)",
    )
    parser.add_argument(
        "--hardware",
        metavar="NAME",
        help="hardware that the Space runs on (default: zero-a10g, which is ZeroGPU, for a new Space; an "
        "existing one keeps its own)",
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help="also install what training and publishing need, which ZeroGPU cannot run (default: only what "
        "serving needs)",
    )
    _add_repository_options(parser)


def run_space(options: argparse.Namespace) -> int:
    from fracture_lib.publishing.push import (
        ZERO_GPU,
        collect_space_files,
        set_space_variables,
        variables_for,
    )

    if options.full and options.hardware in (None, ZERO_GPU):
        raise InvalidArgument(
            "ZeroGPU cannot run the version of PyTorch that --full installs. "
            "Choose other hardware, for example --hardware cpu-basic."
        )
    variables = variables_for(options.models)
    files = collect_space_files(options.repo, options.models, options.datasets, options.full)
    _push(options, files, "space", hardware=options.hardware)
    if options.create_pr and variables:
        print("After the pull request is merged, set these variables of the Space:")
        print(*(f"  {name}={value}" for name, value in variables.items()), sep="\n")
    elif not options.dry_run:
        set_space_variables(options.repo, variables)
    return 0


def _add_repository_options(parser: Parser) -> None:
    parser.add_argument(
        "--repo", required=True, metavar="OWNER/NAME", help="repository to push to (required)"
    )
    parser.add_argument(
        "--private",
        action="store_true",
        help="if the repository does not exist, create it private (default: public)",
    )
    parser.add_argument(
        "--create-pr", action="store_true", help="open a pull request (default: commit to the main branch)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="list the changes and send nothing (default: send them)"
    )


def _push(
    options: argparse.Namespace,
    files: Mapping[str, Path | bytes],
    kind: Literal["model", "dataset", "space"],
    force: bool = False,
    hardware: str | None = None,
) -> int:
    from fracture_lib.publishing.push import push_to_hub

    url, messages = push_to_hub(
        files,
        options.repo,
        kind,
        private=options.private,
        create_pr=options.create_pr,
        force=force,
        dry_run=options.dry_run,
        hardware=hardware,
    )
    print(*messages, sep="\n")
    print(f"Pushed: {url}" if url else "Dry run: nothing was sent.")
    return 0
