"""`fracture app`: start the page."""

import argparse
from importlib.util import find_spec

from fracture_lib.cli.options import Commands, add_command, add_fast

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    parser = add_command(
        commands,
        "app",
        run,
        description="Start the page on this machine. It runs until it is stopped with Ctrl+C.",
        examples=["fracture app", "GRADIO_SERVER_PORT=8080 fracture app"],
        extra="app",
    )
    add_fast(parser)


def run(options: argparse.Namespace) -> int:
    if not find_spec("gradio"):  # checked first, as `main` starts a thread before it imports Gradio
        raise ModuleNotFoundError("Gradio is not installed.", name="gradio")
    from fracture_lib.webui.launch import main

    main(fast=options.fast)
    return 0
