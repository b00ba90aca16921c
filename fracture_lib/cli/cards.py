"""`fracture cards`: write the bundled models' cards and the README's table of results."""

import argparse

from fracture_lib.cli.options import Commands, add_command
from fracture_lib.hub import BUNDLE
from fracture_lib.registry import MODELS

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    add_command(
        commands,
        "cards",
        run,
        description="Write the bundled models' cards and the README's table of results. Needs a checkout "
        "of the repository.",
        examples=["fracture cards"],
        extra="hub",
    )


def run(options: argparse.Namespace) -> int:
    from fracture_lib.publishing.cards import write_card, write_results_table

    print(f"Wrote {write_results_table()}.")
    for name in MODELS:
        print(f"Wrote {write_card(BUNDLE / name)}.")
    return 0
