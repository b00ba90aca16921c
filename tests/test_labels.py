import pytest

from fracture_lib.errors import UnknownLabel
from fracture_lib.labels import CLASSES, ID2LABEL, check_id2label, label_id


def test_ten_classes_in_alphabetical_order_each_with_one_sentence():
    labels = [c.label for c in CLASSES]
    assert len(labels) == 10 and labels == sorted(labels)
    assert [c.id for c in CLASSES] == list(range(10))
    for c in CLASSES:
        assert c.description.endswith(".") and c.description.count(".") == 1


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Avulsion fracture", "Avulsion"),
        ("Hairline Fracture", "Hairline"),
        ("Fracture Dislocation", "Dislocation"),
        ("spiral_fracture", "Spiral"),
        ("GREENSTICK", "Greenstick"),
    ],
)
def test_dataset_folder_names_are_understood(name, label):
    assert ID2LABEL[label_id(name)] == label


@pytest.mark.parametrize("name", ["Torus", "", "fracture"])
def test_an_unknown_label_is_named(name):
    with pytest.raises(UnknownLabel, match=f'"{name}"'):
        label_id(name)


def test_a_config_must_have_our_classes_in_our_order():
    check_id2label({str(i): label for i, label in ID2LABEL.items()})  # JSON keys are strings
    with pytest.raises(UnknownLabel, match="Torus"):
        check_id2label({**ID2LABEL, 3: "Torus"})
    with pytest.raises(UnknownLabel, match="Comminuted"):
        check_id2label({**ID2LABEL, 0: "Comminuted"})
    with pytest.raises(UnknownLabel, match="Spiral"):
        check_id2label({i: label for i, label in ID2LABEL.items() if label != "Spiral"})
