import pytest

from fracture_lib.errors import UnknownLabel
from fracture_lib.labels import CLASSES, ID2LABEL, check_id2label, label_id


def test_classes_are_ten_in_alphabetical_order_with_one_sentence_each():
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
def test_label_id_with_folder_name_of_a_dataset_returns_the_class(name, label):
    assert ID2LABEL[label_id(name)] == label


@pytest.mark.parametrize("name", ["Torus", "", "fracture"])
def test_label_id_with_unknown_name_raises_unknown_label_with_the_choices(name):
    with pytest.raises(UnknownLabel, match=f'Unknown class "{name}". Choose from Avulsion, .*, Spiral'):
        label_id(name)


def test_check_id2label_with_the_ten_classes_in_order_passes():
    check_id2label({str(i): label for i, label in ID2LABEL.items()})  # JSON keys are strings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: "Torus"}, "Torus"),
        ({0: "Comminuted"}, "maps id 0 to .Comminuted.; expected id 1"),
        ({9: None}, "lacks the classes Spiral"),
    ],
)
def test_check_id2label_with_other_classes_raises_unknown_label(change, message):
    id2label = {i: label for i, label in {**ID2LABEL, **change}.items() if label}
    with pytest.raises(UnknownLabel, match=message):
        check_id2label(id2label)
