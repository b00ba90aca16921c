"""The ten fracture classes, in the order of every logits and probability vector (alphabetical)."""

from collections.abc import Mapping
from dataclasses import dataclass

from fracture_lib.errors import UnknownLabel

__all__ = ["CLASSES", "ID2LABEL", "LABEL2ID", "FractureClass", "check_id2label", "label_id"]


@dataclass(frozen=True)
class FractureClass:
    id: int
    label: str  # short name, used in configs, reports and on the page
    description: str  # one sentence for visitors


_DESCRIPTIONS = {
    "Avulsion": "A tendon or ligament has pulled a small piece of bone away.",
    "Comminuted": "The bone is broken into three or more pieces.",
    "Dislocation": "A fracture next to a joint whose bones are out of place.",
    "Greenstick": "A child's bone is bent and cracked on one side only.",
    "Hairline": "A thin crack; the bone has not moved.",
    "Impacted": "One end of the broken bone is driven into the other.",
    "Longitudinal": "The break runs along the length of the bone.",
    "Oblique": "The break crosses the bone at an angle.",
    "Pathological": "The bone broke where a disease, such as a tumour, had weakened it.",
    "Spiral": "The break winds around the bone, as after a twist.",
}

CLASSES = tuple(
    FractureClass(i, label, description) for i, (label, description) in enumerate(_DESCRIPTIONS.items())
)
ID2LABEL = {c.id: c.label for c in CLASSES}
LABEL2ID = {c.label: c.id for c in CLASSES}

_IDS_BY_KEY = {c.label.lower(): c.id for c in CLASSES}


def label_id(name: str) -> int:
    """Return the class id of a label or of a dataset's folder name.

    Ignores case and the word "fracture": "Hairline Fracture" and "Fracture Dislocation" are
    Hairline and Dislocation. Raises UnknownLabel for anything else.
    """
    key = " ".join(word for word in name.lower().replace("_", " ").split() if word != "fracture")
    if key not in _IDS_BY_KEY:
        raise UnknownLabel(f'Unknown class "{name}". Choose from {", ".join(LABEL2ID)}.')
    return _IDS_BY_KEY[key]


def check_id2label(id2label: Mapping[str, str]) -> None:
    """Raise UnknownLabel unless `id2label`, as in a config.json, lists the ten classes in this order."""
    labels = {int(i): label for i, label in id2label.items()}
    for i, label in labels.items():
        if label_id(label) != i:
            raise UnknownLabel(f'The config maps id {i} to "{label}"; expected id {label_id(label)}.')
    if missing := sorted(ID2LABEL.keys() - labels.keys()):
        raise UnknownLabel(f"The config lacks the classes {', '.join(ID2LABEL[i] for i in missing)}.")
