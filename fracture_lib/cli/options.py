"""What several commands share: the parser, common options and the types of their values."""

import argparse
from collections.abc import Callable, Sequence
from textwrap import fill
from typing import NoReturn, TypeAlias, get_args

from fracture_lib.data.sources import KAGGLE_PREFIX
from fracture_lib.errors import InvalidArgument
from fracture_lib.hub import HUB_PREFIX, LOCAL_PREFIX, Runtime
from fracture_lib.inference.prediction import check_top_k
from fracture_lib.labels import CLASSES
from fracture_lib.registry import ALL_MODELS

__all__ = [
    "DATA_NOTE",
    "MODEL_NOTE",
    "SHARD_SIZE",
    "Commands",
    "Parser",
    "add_command",
    "add_fast",
    "add_group",
    "add_runtime",
    "add_subcommands",
    "add_training_options",
    "add_verbose",
    "positive_int",
    "top_k",
]

# For the end of a help text, as argparse would break the words of a reference there.
MODEL_NOTE = f"""MODEL is one of
  {", ".join(ALL_MODELS)}
  {HUB_PREFIX}owner/name[@revision]
  {LOCAL_PREFIX}path"""
DATA_NOTE = f"""DATA is one of
  a folder of <class>/<split>/image.jpg, <split>/<class>/image.jpg or <class>/image.jpg
  {HUB_PREFIX}owner/name[@revision]
  {KAGGLE_PREFIX}owner/name"""

WIDTH = 79  # of a description
SHARD_SIZE = 500  # images in a file of `predict --out`: what a stop loses, seconds to a minute of work


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports wrong usage in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'error: {message.rstrip(".")}. See "{self.prog} --help".\n')


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    description: str,
    notes: Sequence[str] = (),
    examples: Sequence[str],
    extra: str,
) -> Parser:
    """Add a command and return its parser.

    The first sentence of `description` is also the command's line in the list of commands. `notes` are
    shown as they are, above the examples. `run` returns the exit code. `extra` installs the packages that
    the command may lack.
    """
    command = commands.add_parser(
        name,
        help=_summary(description),
        description=fill(description, WIDTH),
        epilog="\n\n".join([*notes, "\n  ".join(["examples:", *examples])]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_verbose(command)
    command.set_defaults(run=run, extra=extra)
    return command


def add_group(commands: Commands, name: str, *, description: str) -> Commands:
    """Add a command that only holds other commands; on its own, it prints its help."""
    group = commands.add_parser(name, help=_summary(description), description=description)
    add_verbose(group)
    return add_subcommands(group)


def add_subcommands(parser: Parser) -> Commands:
    """Return what holds the commands below `parser`."""

    def print_help(options: argparse.Namespace) -> int:
        parser.print_help()
        return 0

    parser.set_defaults(run=print_help)
    return parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)


def _summary(description: str) -> str:
    sentence = description.partition(".")[0]
    return (sentence[0].lower() + sentence[1:]).replace("%", "%%")


def add_verbose(parser: Parser) -> None:
    parser.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=argparse.SUPPRESS,  # so that "fracture -v predict" and "fracture predict -v" both count
        help="log progress to stderr; -vv adds details and tracebacks (default: warnings only)",
    )


def add_fast(parser: Parser) -> None:
    parser.add_argument(
        "--fast",
        action="store_true",
        help="give each model one view of an image: several times as fast, a little less accurate "
        "(default: the mean over several views)",
    )


def add_runtime(parser: Parser) -> None:
    parser.add_argument(
        "--runtime",
        choices=get_args(Runtime),
        default="onnx",
        help="onnx: ONNX Runtime; native: the framework that trained the model (default: %(default)s)",
    )


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every training in folds."""
    parser.add_argument("--seed", type=int, default=0, help="seed of the training (default: %(default)s)")
    parser.add_argument("--epochs", type=positive_int, help="epochs per fold (default: the recipe's)")
    parser.add_argument(
        "--keep-checkpoints",
        action="store_true",
        help="keep the folder of checkpoints when the training ends (default: remove it)",
    )


def positive_int(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'"{text}" is not a whole number above 0')
    return int(text)


def top_k(text: str) -> int:
    try:
        return check_top_k(int(text))
    except (InvalidArgument, ValueError) as error:
        raise argparse.ArgumentTypeError(
            f'"{text}" is not a whole number from 1 to {len(CLASSES)}'
        ) from error
