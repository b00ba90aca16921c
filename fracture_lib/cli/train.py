"""`fracture pretrain`, `train`, `ensemble` and `remeasure`: train models, measure them together or again."""

import argparse
from dataclasses import replace
from pathlib import Path

from fracture_lib.cli.evaluate import print_report
from fracture_lib.cli.options import DATA_NOTE, Commands, add_command, add_training_options, positive_int
from fracture_lib.hub import HUB_PREFIX
from fracture_lib.registry import MODELS

__all__ = ["add_commands"]

WEIGHTS_NOTE = f"""WEIGHTS is one of
  a safetensors file that "fracture pretrain" wrote
  for resnet50, also a safetensors file with torchvision's names
  {HUB_PREFIX}owner/name[@revision] with such a file, model.safetensors"""
PRETRAINING_NOTE = f"""Without WEIGHTS, training starts from
  random weights for a CNN, {MODELS["resnet50"].pretrained} for resnet50"""
RESUME_HINT = " The same command resumes from the last checkpoint."


def add_commands(commands: Commands) -> None:
    _add_pretrain(commands)
    _add_train(commands)
    _add_ensemble(commands)
    _add_remeasure(commands)


def _add_pretrain(commands: Commands) -> None:
    parser = add_command(
        commands,
        "pretrain",
        run_pretrain,
        description="Train the layers before the head of a model on FracAtlas and write them to a file, from "
        "which train starts. They learn to recognize fracture, region and view. Both CNNs read the file of "
        "either. The same command resumes a stopped training from its last checkpoint.",
        notes=[WEIGHTS_NOTE, PRETRAINING_NOTE],
        examples=[
            "fracture pretrain --model pytorch-cnn --data FRACATLAS --out cnn.safetensors",
            "fracture pretrain --model resnet50 --data FRACATLAS --out resnet50.safetensors "
            "--pretrained FILE.safetensors",
        ],
        extra="train",
    )
    parser.set_defaults(resume_hint=RESUME_HINT)
    parser.add_argument("--model", required=True, choices=tuple(MODELS), help="the model to train (required)")
    parser.add_argument(
        "--data", required=True, metavar="FRACATLAS", help="folder of FracAtlas with manifest.csv (required)"
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="safetensors file to write (required)"
    )
    parser.add_argument("--pretrained", metavar="WEIGHTS", help="weights to start from (default: see below)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default: %(default)s)")


def run_pretrain(options: argparse.Namespace) -> int:
    from fracture_lib.training.pretrain import pretrain

    pretrain(options.model, options.data, options.out, options.pretrained, options.seed)
    print(f"Wrote the pretrained layers to {options.out}.")
    return 0


def _add_train(commands: Commands) -> None:
    parser = add_command(
        commands,
        "train",
        run_train,
        description="Train a model and write its folder with a model card. The same command resumes "
        "a stopped training from its last checkpoint.",
        notes=[DATA_NOTE, WEIGHTS_NOTE, PRETRAINING_NOTE],
        examples=[
            "fracture train --model pytorch-cnn --data DIR --out OUT/pytorch-cnn --pretrain-on FRACATLAS",
            "fracture train --model resnet50 --data DIR --out OUT/resnet50 --pretrained FILE.safetensors",
            "fracture train --model tensorflow-cnn --data hf-hub:owner/name --split train --out OUT "
            "--n-measured-folds 1",
        ],
        extra="train",
    )
    parser.set_defaults(resume_hint=RESUME_HINT)
    parser.add_argument("--model", required=True, choices=tuple(MODELS), help="the model to train (required)")
    parser.add_argument("--data", required=True, help="labelled images (required)")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="model folder to write or replace (required)"
    )
    parser.add_argument("--split", default="Train", help="split to train on (default: %(default)s)")
    parser.add_argument(
        "--n-folds",
        type=positive_int,
        default=5,
        metavar="N",
        help="folds of the cross-validation (default: %(default)s)",
    )
    parser.add_argument(
        "--n-measured-folds",
        type=positive_int,
        metavar="N",
        help="how many of the folds are held out once and measured (default: all)",
    )
    parser.add_argument(
        "--pretrained",
        metavar="WEIGHTS",
        help="weights to start from (default: see below)",
    )
    parser.add_argument(
        "--pretrain-on",
        metavar="FRACATLAS",
        help="folder of FracAtlas; first do what pretrain does, starting from --pretrained "
        "(default: no pretraining)",
    )
    add_training_options(parser)


def run_train(options: argparse.Namespace) -> int:
    from fracture_lib.publishing.cards import write_card
    from fracture_lib.training.recipes import RECIPES
    from fracture_lib.training.trainer import train

    recipe = RECIPES[options.model]
    if options.epochs:
        recipe = replace(recipe, epochs=options.epochs)
    report = train(
        options.model,
        options.data,
        options.out,
        split=options.split,
        n_folds=options.n_folds,
        n_measured_folds=options.n_measured_folds,
        seed=options.seed,
        pretrained=options.pretrained,
        pretrain_on=options.pretrain_on,
        recipe=recipe,
        keep_checkpoints=options.keep_checkpoints,
    )
    card = write_card(options.out)
    print_report(report)
    print(f"\nWrote the model to {options.out} and its card to {card}.")
    return 0


def _add_ensemble(commands: Commands) -> None:
    parser = add_command(
        commands,
        "ensemble",
        run_ensemble,
        description="Measure trained models together and fit the ensemble's weights. The models must have "
        "been trained on the same images with the same folds.",
        examples=[
            "fracture ensemble --models OUT/pytorch-cnn OUT/tensorflow-cnn OUT/resnet50 --out OUT/ensemble"
        ],
        extra="train",
    )
    parser.add_argument(
        "--models",
        nargs="+",
        required=True,
        type=Path,
        metavar="DIR",
        help="model folders written by train (required)",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder to write evaluation.json to (required)"
    )


def run_ensemble(options: argparse.Namespace) -> int:
    from fracture_lib.evaluation.ensemble import measure_ensemble

    report = measure_ensemble(options.models, options.out)
    print_report(report)
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in (report.weights or {}).items())
    print(f"  {'weights':<27} {weights}\n\nWrote the report to {options.out / 'evaluation.json'}.")
    return 0


def _add_remeasure(commands: Commands) -> None:
    parser = add_command(
        commands,
        "remeasure",
        run_remeasure,
        description="Compute the report of trained models again from their stored out-of-fold logits, after "
        "a metric was added. Trains nothing.",
        examples=["fracture remeasure fracture_lib/bundle/pytorch-cnn OUT/resnet50"],
        extra="train",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="model folder (required)")


def run_remeasure(options: argparse.Namespace) -> int:
    from fracture_lib.evaluation.remeasure import remeasure

    for folder in options.folders:
        print_report(remeasure(folder))
    return 0
