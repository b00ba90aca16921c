"""The CSV file of a batch."""

import csv
import io
from collections.abc import Iterable, Iterator

from fracture_lib.inference.batch import BatchRow
from fracture_lib.inference.prediction import Prediction
from fracture_lib.labels import LABEL2ID

__all__ = ["COLUMNS", "FILE_ENCODING", "to_csv"]

N_RANKS = 3
COLUMNS = (
    "image",
    "status",
    "fracture",
    "fracture_probability",
    "model",
    *(f"rank_{rank}" for rank in range(1, N_RANKS + 1)),
    *LABEL2ID,
    "summary",
    "warnings",
    "error",
)
FILE_ENCODING = "utf-8-sig"  # of a file: Excel takes one without a byte order mark for the local code page
# What a spreadsheet takes for the start of a formula, also in full width.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def to_csv(rows: Iterable[BatchRow]) -> str:
    """Return CSV text with COLUMNS: one line per image and model, one per image that has no prediction.

    `fracture` is the fracture detector's outcome: "visible", "uncertain" or "none"; empty if it gave none.
    `rank_1` to `rank_3` are the most probable classes. A model that failed has a line of its own, with the
    status "failed" and the reason in `error`. A name that a spreadsheet would take for a formula begins with
    "./", so that it is still a path to the same file.
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    for row in rows:
        writer.writerows(_lines(row))
    return file.getvalue()


def _lines(row: BatchRow) -> Iterator[dict[str, str]]:
    common = {"image": _escape_formula(row.name), "status": row.status, "warnings": " ".join(row.warnings)}
    if row.result and (fracture := row.result.fracture):
        common |= {"fracture": fracture.outcome, "fracture_probability": f"{fracture.probability:.4f}"}
    if row.reason:
        yield common | {"error": row.reason}
    if row.result:
        for prediction in row.result.predictions.values():
            yield common | _columns(prediction) | {"summary": row.result.summary}
    for model, reason in row.failures.items():
        yield common | {"status": "failed", "model": model, "error": reason}


def _columns(prediction: Prediction) -> dict[str, str]:
    """Return the columns of a model's answer."""
    ranks = {f"rank_{rank}": s.label for rank, s in enumerate(prediction.scores[:N_RANKS], start=1)}
    probabilities = {s.label: f"{s.probability:.4f}" for s in prediction.scores}
    return {"model": prediction.model} | ranks | probabilities


def _escape_formula(name: str) -> str:
    """Return a file name that a spreadsheet does not take for a formula."""
    return f"./{name}" if name.startswith(_FORMULA_STARTS) else name
