"""Out-of-distribution detection: images that do not look like a bone X-ray.

A DICOM file may name another modality, and colour is easy to measure. Otherwise a score decides, of the
bundled ResNet50's pooled features and the layout of the image: how far they are from those of X-rays, which
finds images of kinds not seen before, plus how far they lie towards known other kinds. Sources: the
Mahalanobis distance (Lee et al., https://arxiv.org/abs/1807.03888), Fisher's linear discriminant, and
outlier exposure (Hendrycks et al., https://arxiv.org/abs/1812.04606).
`fracture_lib.evaluation.ood` fits the discriminant and the thresholds.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from fracture_lib.errors import InvalidModel
from fracture_lib.hub import BUNDLE
from fracture_lib.inference.layout import describe_layout
from fracture_lib.io.image import LoadedImage
from fracture_lib.models.functional import Floats, global_average_pool
from fracture_lib.models.report import OODReport, OODThresholds

__all__ = ["DISCRIMINANT_FILE", "OOD_FOLDER", "Discriminant", "OODResult", "detect_ood", "embed"]

OOD_FOLDER = BUNDLE / "ood"
DISCRIMINANT_FILE = "discriminant.safetensors"
# DICOM modalities of projection radiographs, and of images that may be one.
RADIOGRAPHY = {None, "CR", "DX", "DG", "IO", "OT", "PX", "RF", "RG", "XA"}


@dataclass(frozen=True)
class OODResult:
    """Whether an image is out of distribution, and why."""

    is_ood: bool
    reason: str  # a sentence; empty for an image in distribution
    score: float  # the discriminant's
    threshold: float  # of `score`

    @property
    def message(self) -> str:
        """What to show people; empty for an image in distribution."""
        return f"This does not look like a bone X-ray. {self.reason}" if self.is_ood else ""


@dataclass(frozen=True, eq=False)
class Discriminant:
    """What tells other images from X-rays, in vectors of C features."""

    mean: Floats  # [C], of X-rays
    whitening: Floats  # [C, C], after which the features of X-rays have about unit variance, uncorrelated
    direction: Floats  # [C], in whitened features: towards other kinds of images

    def score(self, vectors: Floats) -> Floats:
        """Return scores [N] of vectors [N, C]: distance from the mean plus the way along `direction`."""
        whitened = (vectors - self.mean) @ self.whitening
        return np.linalg.norm(whitened, axis=1) + whitened @ self.direction


def detect_ood(image: LoadedImage, pixels: NDArray[np.float32], features: Floats) -> OODResult:
    """Compare an image with X-rays.

    `pixels` float32 [128, 128] is its first view and `features` float32 [C, h, w] the bundled ResNet50's
    feature map of this. Raises InvalidModel if the discriminant cannot be read or was fitted to other
    features.
    """
    discriminant, thresholds = _read_detector()
    vector = embed(pixels, features)
    if len(vector) != len(discriminant.mean):
        raise InvalidModel(
            f"The bundled folder {OOD_FOLDER.name} was fitted to another ResNet50. Run `fracture fit-ood`."
        )
    score = float(discriminant.score(vector[None])[0])
    reason = ""
    if image.modality not in RADIOGRAPHY:
        reason = f"The DICOM file's modality is {image.modality}, not radiography."
    elif image.colorfulness > thresholds.colorfulness:
        reason = "It is a colour image; X-rays are greyscale."
    elif score > thresholds.score:
        reason = "It looks unlike the X-rays the models were trained on."
    return OODResult(bool(reason), reason, score, thresholds.score)


@cache
def _read_detector() -> tuple[Discriminant, OODThresholds]:
    thresholds = OODReport.read(OOD_FOLDER).thresholds
    try:
        tensors = load_file(OOD_FOLDER / DISCRIMINANT_FILE)
        mean, whitening, direction = (
            tensors[name].astype(np.float32) for name in ("mean", "whitening", "direction")
        )
    except (OSError, SafetensorError, KeyError) as error:
        raise InvalidModel(f"The bundled folder {OOD_FOLDER.name} is damaged. Download it again.") from error
    return Discriminant(mean, whitening, direction), thresholds


def embed(pixels: NDArray[np.float32], features: Floats) -> Floats:
    """Return the vector [C + 18] of a model input [S, S] and its feature map [C, h, w], not negative."""
    pooled = np.sqrt(global_average_pool(features[None])[0])  # the root evens out few large values
    return np.concatenate([pooled, describe_layout(pixels)])
