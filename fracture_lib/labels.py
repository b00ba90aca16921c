"""The ten fracture classes: the only place that spells them out.

The order is alphabetical and is the order of every logits and probabilities vector.
"""

from dataclasses import dataclass

from fracture_lib.errors import UnknownLabel

__all__ = ["CLASSES", "ID2LABEL", "LABEL2ID", "FractureClass", "check_id2label", "label_id"]


@dataclass(frozen=True)
class FractureClass:
    id: int
    label: str  # short name, as in configs, reports and on the page
    description: str  # one plain sentence


_DESCRIPTIONS = {
    "Avulsion": "A tendon or ligament has pulled a small piece of bone away.",
    "Comminuted": "The bone is broken into three or more pieces.",
    "Dislocation": "A fracture together with a joint whose bones have left their place.",
    "Greenstick": "A child's bone is bent and cracked on one side only.",
    "Hairline": "A thin crack whose two sides have not moved apart.",
    "Impacted": "One end of the broken bone is driven into the other.",
    "Longitudinal": "The break runs along the length of the bone.",
    "Oblique": "The break crosses the bone at a slant.",
    "Pathological": "The bone broke where disease, such as a tumour, had weakened it.",
    "Spiral": "The break winds around the bone, as after a twist.",
}

CLASSES = tuple(
    FractureClass(i, label, description) for i, (label, description) in enumerate(_DESCRIPTIONS.items())
)
ID2LABEL = {c.id: c.label for c in CLASSES}
LABEL2ID = {c.label: c.id for c in CLASSES}

_KEYS = {c.label.lower(): c.id for c in CLASSES}


def label_id(name):
    """Return the id of a class from a label or a dataset's folder name.

    Case and the word "fracture" do not count, so "Hairline Fracture" and "Fracture Dislocation"
    are Hairline and Dislocation. Raises UnknownLabel for anything else.
    """
    key = " ".join(word for word in name.lower().replace("_", " ").split() if word != "fracture")
    if key not in _KEYS:
        raise UnknownLabel(f'"{name}" is none of the {len(CLASSES)} classes: {", ".join(LABEL2ID)}.')
    return _KEYS[key]


def check_id2label(id2label):
    """Raise UnknownLabel unless a config's `id2label` is exactly ours, in our order."""
    found = {int(i): label for i, label in id2label.items()}
    for i, label in found.items():
        if label_id(label) != i:
            raise UnknownLabel(f'The config gives "{label}" the id {i}; here it is {label_id(label)}.')
    if missing := sorted(ID2LABEL.keys() - found.keys()):
        raise UnknownLabel(f"The config lacks the classes {', '.join(ID2LABEL[i] for i in missing)}.")
