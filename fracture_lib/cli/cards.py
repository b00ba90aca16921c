"""`fracture cards`: write the bundled models' cards and the README's results."""

import argparse

from fracture_lib.cli.options import Commands, add_command
from fracture_lib.hub import BUNDLE
from fracture_lib.registry import DETECTOR, MODELS

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    add_command(
        commands,
        "cards",
        run,
        description="Write the bundled models' cards and the README's results. Needs a checkout of the "
        "repository.",
        examples=["fracture cards"],
        extra="hub",
    )


def run(options: argparse.Namespace) -> int:
    from fracture_lib.publishing.cards import write_card, write_results

    print(f"Wrote {write_results()}.")
    for name in (*MODELS, DETECTOR):
        print(f"Wrote {write_card(BUNDLE / name)}.")
    return 0
