"""`fracture predict`: classify images and print, or write, one result per image."""

import argparse
import glob
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from PIL import Image

from fracture_lib.cli.options import MODEL_NOTE, Commands, add_command, add_runtime, top_k
from fracture_lib.errors import InvalidImage
from fracture_lib.hub import Reference
from fracture_lib.inference.batch import BatchInput, BatchRow, predict_batch, to_csv
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.io.image import FORMATS, is_dicom
from fracture_lib.registry import ALL_MODELS

__all__ = ["add_commands", "find_images"]

DISCLAIMER = 'Not a medical device. There is no "no fracture" class: a healthy bone gets a fracture type too.'
DICOM_SUFFIXES = {".dcm", ".dicom"}
CSV_START = b"image,model,label"  # of a CSV file that this command wrote
DICOM_HEAD = 4096  # bytes of a file that show whether it is DICOM

_logger = logging.getLogger(__name__)


def add_commands(commands: Commands) -> None:
    parser = add_command(
        commands,
        "predict",
        run,
        description=f"Classify the fracture in X-ray images. {DISCLAIMER}",
        notes=[MODEL_NOTE],
        examples=[
            "fracture predict xray.png",
            'fracture predict xray.png folder/ "scans/*.dcm" --model resnet50 --top-k 5',
            "fracture predict folder/ --csv results.csv",
            "fracture predict xray.png --json | jq .summary",
        ],
        extra="train",  # for the native runtime
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image or DICOM file, folder to search with its subfolders, or quoted pattern such as "
        '"scans/**/*.dcm" (required)',
    )
    parser.add_argument(
        "--model", default="all", help="model to use, or all models and their ensemble (default: %(default)s)"
    )
    parser.add_argument(
        "--top-k",
        type=top_k,
        default=3,
        metavar="K",
        help="number of predictions per model, most probable first; a CSV file always has all ten "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--skip-ood-check",
        action="store_true",
        help="also classify images that do not look like a bone X-ray (default: report them as errors)",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--json", action="store_true", help="print one JSON object per line and image (default: text)"
    )
    output.add_argument(
        "--csv",
        type=_csv_file,
        metavar="FILE",
        help="write one line per image and model to FILE, or to stdout for - (default: text)",
    )
    add_runtime(parser)


def _csv_file(text: str) -> str:
    # "--csv *" without a file to write would overwrite the first image.
    if Path(text).suffix.lower() in _image_suffixes():
        raise argparse.ArgumentTypeError(f'"{text}" is an image; give the file to write')
    if Path(text).is_file():
        with Path(text).open("rb") as file:
            start = file.read(len(CSV_START))
        if start and start != CSV_START:
            raise argparse.ArgumentTypeError(f'"{text}" exists and is not a CSV file of this command')
    return text


def run(options: argparse.Namespace) -> int:
    references = ALL_MODELS if options.model == "all" else (options.model,)
    pipeline = InferencePipeline(options.runtime)
    sources: dict[str, list[str]] = {}
    for reference in references:  # a wrong model ends the command before any image is read
        model = pipeline.get_model(reference)
        sources.setdefault(str(model.source), []).append(model.name)
    if not options.json:
        for source, names in sources.items():
            print(f"{', '.join(names)}: {source}", file=sys.stderr)
    ok = True
    with _writer(options) as write:
        for row in _predict_each(pipeline, options.images, references, options.skip_ood_check):
            write(row)
            ok &= _report_problems(row)
    if not options.json:
        print(DISCLAIMER, file=sys.stderr)
    return 0 if ok else 1


def _predict_each(
    pipeline: InferencePipeline,
    arguments: Iterable[str],
    references: Sequence[Reference],
    skip_ood_check: bool,
) -> Iterator[BatchRow]:
    """Yield one row per image, and one per argument that names none; classify no file twice."""
    seen: set[Path] = set()
    for argument in arguments:
        try:
            paths = find_images(argument)
        except InvalidImage as error:
            yield BatchRow(argument, None, str(error))
            continue
        except OSError as error:  # such as a folder that may not be read
            yield BatchRow(argument, None, f"{error.strerror}.")
            continue
        for path in paths:
            if path not in seen:
                seen.add(path)
                _logger.info("Classifying %s", path)
                yield from predict_batch(pipeline, [BatchInput(str(path), path)], skip_ood_check, references)


def find_images(argument: str) -> list[Path]:
    """Return the image files that a path, a folder or a pattern stands for, in alphabetical order.

    A folder is searched with its subfolders, without hidden ones, for names with the suffix of a readable
    format and for DICOM files without a suffix. Raises InvalidImage if there are none. A path that does
    not exist is returned as it is.
    """
    path = Path(argument)
    if path.is_dir():
        return _search_folder(path)
    if path.exists() or not any(character in argument for character in "*?["):
        return [path]
    matches = map(Path, sorted(glob.glob(argument, recursive=True)))  # noqa: PTH207, skips hidden files
    found = [image for match in matches for image in (_search_folder(match) if match.is_dir() else [match])]
    if not found:
        raise InvalidImage("No file matches this pattern.")
    return list(dict.fromkeys(found))


def _search_folder(folder: Path) -> list[Path]:
    suffixes = _image_suffixes()
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
        and (path.suffix.lower() in suffixes or _is_dicom_without_suffix(path))
    ]
    if not found:
        raise InvalidImage("There is no image in this folder.")
    return found


def _image_suffixes() -> set[str]:
    by_suffix = Image.registered_extensions()
    return DICOM_SUFFIXES | {suffix for suffix, name in by_suffix.items() if name in FORMATS}


def _is_dicom_without_suffix(path: Path) -> bool:
    if path.suffix and not path.suffix[1:].isdecimal():  # names are often UIDs such as 1.2.840.10008
        return False
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(DICOM_HEAD))
    except OSError:
        return False


@contextmanager
def _writer(options: argparse.Namespace) -> Iterator[Callable[[BatchRow], None]]:
    """Yield the function that writes a row in the chosen format."""
    if options.json:
        yield partial(_print_json, top_k=options.top_k)
    elif options.csv is None:
        yield partial(_print_text, top_k=options.top_k)
    elif options.csv == "-":
        yield _csv_writer(lambda text: print(text.replace("\r\n", "\n"), end="", flush=True))
    else:
        path = Path(options.csv)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written line by line; the name of an image may hold bytes that are not text.
        with path.open("w", buffering=1, encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield _csv_writer(file.write)


def _print_text(row: BatchRow, top_k: int) -> None:
    if row.result is None or not row.result.predictions:
        return
    lines = [row.name]
    for p in row.result.predictions.values():
        scores = ", ".join(f"{s.label} {100 * s.probability:.1f} %" for s in p.scores[:top_k])
        lines.append(f"  {p.model:<14}  {scores}")
    print(*lines, f"  {row.result.summary}", sep="\n", flush=True)


def _print_json(row: BatchRow, top_k: int) -> None:
    content = row.result.to_dict(top_k) if row.result else {"image": row.name, "error": row.error}
    print(json.dumps(content), flush=True)


def _csv_writer(write: Callable[[str], object]) -> Callable[[BatchRow], None]:
    """Write the header and return the function that writes a row: a stopped command keeps its rows."""
    header = to_csv([])
    write(header)

    def write_row(row: BatchRow) -> None:
        write(to_csv([row]).removeprefix(header))

    return write_row


def _report_problems(row: BatchRow) -> bool:
    """Print the errors and warnings of a row to stderr; return whether every model classified the image."""
    if row.result is None:
        print(f"error: {row.name}: {row.error}", file=sys.stderr)
        return False
    errors = [f"{model}: {why}" for model, why in row.result.failures.items()]
    warnings = list(row.result.warnings)
    if row.result.is_rejected and row.result.ood:
        warnings.remove(row.result.ood.message)
        errors.append(f"{row.result.ood.message} Use --skip-ood-check to classify it anyway.")
    for warning in warnings:
        print(f"warning: {row.name}: {warning}", file=sys.stderr)
    for error in errors:
        print(f"error: {row.name}: {error}", file=sys.stderr)
    return not errors
