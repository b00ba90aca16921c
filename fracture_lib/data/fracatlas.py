"""FracAtlas: radiographs with and without fractures, their region and view, and boxes around fractures.

Source: Abedeen et al., https://doi.org/10.1038/s41597-023-02432-4, CC BY 4.0.
"""

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fracture_lib.data.manifest import MANIFEST
from fracture_lib.errors import InvalidData

__all__ = ["FINDINGS", "FracAtlas", "boxes_inside", "load_fracatlas"]

REGIONS, PROJECTIONS = ("hand", "leg", "hip", "shoulder", "mixed"), ("frontal", "lateral", "oblique")
FINDINGS = ("fractured", *REGIONS, *PROJECTIONS)  # any of them may apply to an image
COLUMNS = ("path", "label", "region", "view", "boxes", "source_group")


@dataclass(frozen=True, eq=False)
class FracAtlas:
    """N radiographs."""

    paths: tuple[Path, ...]
    findings: NDArray[np.float32]  # [N, len(FINDINGS)], 0 or 1
    groups: NDArray[np.int64]  # [N]; images of one patient share a number
    boxes: tuple[NDArray[np.float32], ...]  # [K, 4] each, of K fractures: x0, y0, x1, y1 in 0..1
    fingerprint: str  # sha256 of the manifest

    @property
    def fractured(self) -> NDArray[np.bool_]:
        """Whether each image [N] shows a fracture."""
        return self.findings[:, 0] > 0


def load_fracatlas(root: str | Path) -> FracAtlas:
    """Read manifest.csv of a FracAtlas folder: one row for each image.

    `region` and `view` join several values by "+". Raises InvalidData, which names the line, for a row that
    is incomplete, and if there are not both images with and without fractures.
    """
    manifest = Path(root) / MANIFEST
    try:
        data = manifest.read_bytes()
        rows = list(csv.DictReader(data.decode("utf-8-sig").splitlines(), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidData(f"{manifest} cannot be read: {reason}. Give the folder of FracAtlas.") from error
    if not rows:
        raise InvalidData(f"{manifest} lists no images. Give the folder of FracAtlas.")
    if missing := [name for name in COLUMNS if name not in rows[0]]:
        raise InvalidData(f"{manifest} lacks the columns {', '.join(missing)}. Give the folder of FracAtlas.")
    findings, groups, boxes = [], [], []
    for line, row in enumerate(rows, 2):
        try:
            found = {row["label"], *row["region"].split("+"), *row["view"].split("+")}
            findings.append([name in found for name in FINDINGS])
            groups.append(int(row["source_group"]))
            boxes.append(np.array(json.loads(row["boxes"]), np.float32).reshape(-1, 4))
        except (AttributeError, TypeError, ValueError) as error:
            raise InvalidData(f"{manifest}, line {line}: {error}. Correct the row.") from error
    dataset = FracAtlas(
        paths=tuple(manifest.parent / row["path"] for row in rows),
        findings=np.array(findings, np.float32),
        groups=np.array(groups, np.int64),
        boxes=tuple(boxes),
        fingerprint=hashlib.sha256(data).hexdigest(),
    )
    if not dataset.fractured.any() or dataset.fractured.all():
        raise InvalidData(f"{manifest} needs images with and without fractures.")
    return dataset


def boxes_inside(
    boxes: NDArray[np.float32], shape: tuple[int, ...], frame: tuple[slice, slice]
) -> NDArray[np.float32]:
    """Return boxes [K, 4] of an image [H, W] as boxes of the rows and columns in `frame`, all in 0..1."""
    rows, columns = frame
    corner = np.tile([columns.start, rows.start], 2)
    size = np.tile([columns.stop - columns.start, rows.stop - rows.start], 2)
    moved = (boxes * np.tile(shape[::-1], 2) - corner) / size
    return np.clip(moved, 0, 1).astype(np.float32)
