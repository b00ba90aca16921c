"""Out-of-distribution detection: images that do not look like a bone X-ray.

A DICOM file may name another modality, and colour is easy to measure. Otherwise the score decides: one
minus the cosine similarity to the fifth-nearest reference embedding, in the pooled features of the
bundled ResNet50. Source: deep nearest neighbours (Sun et al., https://arxiv.org/abs/2204.06507).
`fracture_lib.evaluation.ood` fits the reference embeddings and thresholds.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fracture_lib.errors import InvalidModel
from fracture_lib.hub import BUNDLE
from fracture_lib.io.image import LoadedImage
from fracture_lib.models.functional import Floats, global_average_pool, normalize
from fracture_lib.models.report import OODReport

__all__ = ["OOD_FOLDER", "REFERENCE_EMBEDDINGS", "OODResult", "detect_ood", "embed", "knn_distances"]

OOD_FOLDER = BUNDLE / "ood"
REFERENCE_EMBEDDINGS = "reference_embeddings.safetensors"
NEIGHBOUR = 5
# DICOM modalities of projection radiographs, and of images that may be one.
RADIOGRAPHY = {None, "CR", "DX", "DG", "IO", "OT", "PX", "RF", "RG", "XA"}


@dataclass(frozen=True)
class OODResult:
    """Whether an image is out of distribution, and why."""

    is_ood: bool
    reason: str  # a sentence; empty for an image in distribution
    score: float  # distance from the reference embeddings, 0..2
    threshold: float  # of `score`

    @property
    def message(self) -> str:
        """What to show people; empty for an image in distribution."""
        return f"This does not look like a bone X-ray. {self.reason}" if self.is_ood else ""


def detect_ood(image: LoadedImage, features: Floats) -> OODResult:
    """Compare an image with the X-rays that the models were trained on.

    `features` float32 [2048, h, w] is the bundled ResNet50's last feature map of this image. Raises
    InvalidModel if the reference embeddings cannot be read.
    """
    reference, max_score, max_colorfulness = _read_reference()
    score = float(knn_distances(embed(features[None]), reference)[0])
    reason = ""
    if image.modality not in RADIOGRAPHY:
        reason = f"The DICOM file's modality is {image.modality}, not radiography."
    elif image.colorfulness > max_colorfulness:
        reason = "It is a colour image; X-rays are greyscale."
    elif score > max_score:
        reason = "It looks unlike the X-rays the models were trained on."
    return OODResult(bool(reason), reason, score, max_score)


@cache
def _read_reference() -> tuple[NDArray[np.float32], float, float]:
    """Return (unit vectors [M, C], largest score, largest colorfulness) of the bundle."""
    thresholds = OODReport.read(OOD_FOLDER).thresholds
    try:
        embeddings = load_file(OOD_FOLDER / REFERENCE_EMBEDDINGS)["embeddings"].astype(np.float32)
    except (OSError, SafetensorError, KeyError) as error:
        raise InvalidModel(f"The bundled folder {OOD_FOLDER.name} is damaged. Download it again.") from error
    return embeddings, thresholds.score, thresholds.colorfulness


def embed(features: Floats) -> Floats:
    """Pool feature maps [N, C, h, w] into unit vectors [N, C]."""
    return normalize(global_average_pool(features))


def knn_distances(vectors: Floats, reference: Floats) -> Floats:
    """Return the cosine distances [N] of unit vectors [N, C] to their fifth-nearest of `reference` [M, C]."""
    return 1 - np.sort(vectors @ reference.T, axis=1)[:, -min(NEIGHBOUR, len(reference))]
