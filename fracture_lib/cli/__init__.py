"""The `fracture` command: its parser, and exit codes for every error.

Exit codes: 0 success; 1 an input could not be used or a step failed; 2 the command line is wrong.
Every error is one line on stderr.
"""

import io
import logging
import os
import sys
from collections.abc import Sequence

from safetensors import SafetensorError

import fracture_lib
from fracture_lib.cli import app, cards, detector, evaluate, ood, predict, push, train
from fracture_lib.cli.options import Parser, add_subcommands, add_verbose
from fracture_lib.errors import FractureError, InvalidArgument, UnknownModel

__all__ = ["main"]

PACKAGE = "fracture-classification"
# Packages that an option needs, not the command: the extra that installs them.
EXTRAS = {"datasets": "hub", "kagglehub": "kaggle"}

_logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Exits with 2 if `arguments` are wrong."""
    _make_printable()
    options = build_parser().parse_args(arguments)
    _configure_logging(getattr(options, "verbose", 0))
    try:
        return int(options.run(options))
    except (UnknownModel, InvalidArgument) as error:
        return _fail(error, 2)
    except FractureError as error:
        return _fail(error)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "fracture_lib"):
            raise
        extra = EXTRAS.get(package, options.extra)
        return _fail(f'This command needs {package}. Run: pip install "{PACKAGE}[{extra}]"')
    except KeyboardInterrupt:
        return _fail(f"Stopped.{getattr(options, 'resume_hint', '')}")
    except BrokenPipeError:  # the reader of a pipe, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a folder that cannot be written, a full disk
        if not error.strerror:
            return _fail(error)
        place = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror}{place}. Check the path, its permissions and the free space.")
    except SafetensorError as error:
        return _fail(error)


def build_parser() -> Parser:
    parser = Parser(
        prog="fracture",
        description=f"Classify the type of a bone fracture in X-ray images. {predict.DISCLAIMER}",
        epilog='"fracture COMMAND --help" lists the options of a command. Exit codes: 0 success; 1 an input '
        "could not be used or a step failed; 2 wrong usage.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {fracture_lib.__version__}")
    add_verbose(parser)
    commands = add_subcommands(parser)
    for module in (predict, app, evaluate, train, detector, ood, cards, push):
        module.add_commands(commands)
    return parser


def _make_printable() -> None:
    """Escape characters, such as those of a file name, that the console's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _configure_logging(verbosity: int) -> None:
    logging.basicConfig(format="%(levelname)s: %(message)s")  # to stderr
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    logging.getLogger("fracture_lib").setLevel(level)


def _fail(error: Exception | str, code: int = 1) -> int:
    _logger.debug("Traceback of the error below", exc_info=True)
    print(f"error: {error}", file=sys.stderr)
    return code
