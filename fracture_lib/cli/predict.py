"""`fracture predict`: classify images and print, or write, one result per image."""

import argparse
import codecs
import json
import logging
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fracture_lib.cli.inputs import find_images, unique
from fracture_lib.cli.options import (
    MODEL_NOTE,
    SHARD_SIZE,
    Commands,
    add_command,
    add_fast,
    add_runtime,
    positive_int,
    top_k,
)
from fracture_lib.errors import FractureError, InvalidArgument, InvalidImage, UnknownModel
from fracture_lib.hub import HUB_PREFIX, Reference
from fracture_lib.inference.batch import (
    BatchRow,
    RowStatus,
    count_left_out,
    list_inputs,
    predict_batch,
    tally,
)
from fracture_lib.inference.batch_csv import COLUMNS, FILE_ENCODING, to_csv
from fracture_lib.inference.fracture import DETECTOR_NOTE
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.inference.prediction import summarize_types
from fracture_lib.io.image import IMAGE_SUFFIXES
from fracture_lib.registry import ALL_MODELS

__all__ = ["add_commands"]

DISCLAIMER = f"Not a medical device. {DETECTOR_NOTE}"
# The beginnings of a CSV file that this command wrote: now, in version 0.3 and before
CSV_STARTS = (",".join(COLUMNS).encode(), b"image,status,model,rank_1", b"image,model,label")

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
            "fracture predict folder/ scans.zip --csv results.csv",
            "fracture predict s3://bucket/scans --out results/ --engine ray",
            "fracture predict xray.png --json | jq .summary",
        ],
        extra="train",  # for the native runtime
    )
    parser.add_argument(
        "images",
        nargs="+",
        type=_not_empty,
        metavar="IMAGE",
        help="image or DICOM file, ZIP archive, folder to search with its subfolders, or quoted pattern "
        'such as "scans/**/*.dcm" (required); with --out also a .txt file that lists paths, '
        f"{HUB_PREFIX}owner/name for a dataset, or any address of fsspec, such as s3://bucket/scans",
    )
    parser.add_argument(
        "--model", default="all", help="model to use, or all models and their ensemble (default: %(default)s)"
    )
    parser.add_argument(
        "--top-k",
        type=top_k,
        default=3,
        metavar="K",
        help="number of predictions per model, most probable first; CSV and Parquet files always have all "
        "ten (default: %(default)s)",
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
    output.add_argument(
        "--out",
        type=_not_empty,
        metavar="DIR",
        help="write Parquet files with one row per image to DIR, for any number of images; the same command "
        "resumes after a stop (default: text)",
    )
    parser.add_argument(
        "--shard-size",
        type=positive_int,
        metavar="N",
        help=f"images per file of --out; a stop loses at most the work on one file (default: {SHARD_SIZE})",
    )
    parser.add_argument(
        "--engine",
        choices=["local", "ray"],
        help="for --out, local: the cores of this machine; ray: a cluster, with Ray Data (default: local)",
    )
    parser.add_argument(
        "--address", type=_not_empty, help="Ray cluster (default: RAY_ADDRESS, or this machine)"
    )
    add_fast(parser)
    add_runtime(parser)


def _not_empty(text: str) -> str:
    if not text:  # such as an unset variable; as a path it would be the current folder
        raise argparse.ArgumentTypeError("it is empty; give a file, a folder or a pattern")
    return text


def _csv_file(text: str) -> str:
    # "--csv *" without a file to write would overwrite the first image.
    if Path(text).suffix.lower() in IMAGE_SUFFIXES:
        raise argparse.ArgumentTypeError(f'"{text}" is an image; give the file to write')
    if Path(text).is_dir():  # also without a name
        raise argparse.ArgumentTypeError(f'"{text}" is a folder; give the file to write')
    if Path(text).is_file():
        with Path(text).open("rb") as file:
            start = file.read(1024).removeprefix(codecs.BOM_UTF8)
        if start and not start.startswith(CSV_STARTS):
            raise argparse.ArgumentTypeError(f'"{text}" exists and is not a CSV file of this command')
    return text


def run(options: argparse.Namespace) -> int:
    references = ALL_MODELS if options.model == "all" else (options.model,)
    _check_combination(options)
    if options.out:
        options.extra = "ray" if options.engine == "ray" else "bulk"
        options.resume_hint = " Run the same command again to resume."
        from fracture_lib.cli.predict_shards import predict_shards  # imports what only this needs

        print(DISCLAIMER, file=sys.stderr)
        return predict_shards(options, references)
    pipeline = InferencePipeline(options.runtime, options.fast)
    sources = _load_models(pipeline, references, all_needed=options.model != "all")
    if not options.json:
        for source, names in sources.items():
            print(f"{', '.join(names)}: {source}", file=sys.stderr)
    ok = True
    left_out: list[str] = []
    statuses: list[RowStatus] = []
    with _writer(options) as write:
        for row in _predict_each(pipeline, options.images, references, options.skip_ood_check, left_out):
            write(row)
            ok &= _report_problems(row)
            statuses.append(row.status)
    if not options.json:
        print(DISCLAIMER, file=sys.stderr)
    if not (options.json and ok and not left_out):
        _print_message(" ".join([tally(statuses), *left_out]))
    return 0 if ok else 1


def _check_combination(options: argparse.Namespace) -> None:
    """Raise InvalidArgument if options do not go together."""
    if options.out and len(options.images) > 1:
        raise InvalidArgument("--out takes one source. Give a folder, a ZIP, a list of paths or an address.")
    for name in ("shard_size", "engine", "address"):
        if not options.out and getattr(options, name) is not None:
            raise InvalidArgument(f"--{name.replace('_', '-')} needs --out DIR.")
    if options.address and options.engine != "ray":
        raise InvalidArgument("--address needs --engine ray.")


def _load_models(
    pipeline: InferencePipeline, references: Iterable[Reference], all_needed: bool
) -> dict[str, list[str]]:
    """Load the models before any image is read; return their names by their source.

    Unless they are all needed, one that fails is left to the results, where the others still answer.
    """
    sources: dict[str, list[str]] = {}
    for reference in references:
        try:
            model = pipeline.get_model(reference)
        except UnknownModel:
            raise
        except FractureError:
            if all_needed:
                raise
            continue
        sources.setdefault(str(model.source), []).append(model.name)
    return sources


def _predict_each(
    pipeline: InferencePipeline,
    arguments: Iterable[str],
    references: Sequence[Reference],
    skip_ood_check: bool,
    left_out: list[str],
) -> Iterator[BatchRow]:
    """Yield one row per image, and one per argument or ZIP that has none; classify no file twice.

    Adds to `left_out` the sentences about files that are not images.
    """
    seen: set[str] = set()
    for argument in arguments:
        try:
            paths, n_left_out = find_images(argument)
        except InvalidImage as error:
            yield BatchRow(argument, None, str(error))
            continue
        except OSError as error:  # such as a folder that may not be read
            yield BatchRow(argument, None, f"{error.strerror}. Check the path and its permissions.")
            continue
        left_out += [count_left_out(n_left_out, argument)] if n_left_out else []
        for path in unique(paths, seen):
            try:
                inputs = list_inputs([path], limit=None, full_paths=True)
            except InvalidImage as error:  # of a ZIP
                yield BatchRow(str(path), None, str(error))
                continue
            left_out += [inputs.left_out] if inputs.left_out else []
            for item in inputs:
                _logger.info("Classifying %s", item.name)
                yield from predict_batch(pipeline, [item], skip_ood_check, references)


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
        with path.open(
            "w", buffering=1, encoding=FILE_ENCODING, errors="backslashreplace", newline=""
        ) as file:
            yield _csv_writer(file.write)


def _print_text(row: BatchRow, top_k: int) -> None:
    result = row.result
    if result is None or not result.predictions:
        return
    lines = [row.name]
    if result.fracture:
        lines.append(f"  {result.fracture.message}")
    for p in result.predictions.values():
        scores = ", ".join(f"{s.label} {100 * s.probability:.1f} %" for s in p.scores[:top_k])
        lines.append(f"  {p.model:<14}  {scores}")
    print(*map(_printable, [*lines, f"  {summarize_types(result)}"]), sep="\n", flush=True)


def _print_json(row: BatchRow, top_k: int) -> None:
    print(json.dumps(row.to_dict(top_k)), flush=True)


def _csv_writer(write: Callable[[str], object]) -> Callable[[BatchRow], None]:
    """Write the header and return the function that writes a row: a stopped command keeps its rows."""
    header = to_csv([])
    write(header)

    def write_row(row: BatchRow) -> None:
        write(to_csv([row]).removeprefix(header))

    return write_row


def _report_problems(row: BatchRow) -> bool:
    """Print the errors and warnings of a row to stderr; return whether every model classified the image."""
    errors = [f"{model}: {reason}" for model, reason in row.failures.items()]
    if row.reason:
        hint = " Use --skip-ood-check to classify it anyway." if row.status == "rejected" else ""
        errors.insert(0, f"{row.reason}{hint}")
    for warning in row.warnings:
        _print_message(f"warning: {row.name}: {warning}")
    for error in errors:
        _print_message(f"error: {row.name}: {error}")
    return not errors


def _print_message(text: str) -> None:
    print(_printable(text), file=sys.stderr)


def _printable(text: str) -> str:
    """Escape what would change the line or the terminal, such as a line break in the name of a file."""
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode()
        for c in text
    )
