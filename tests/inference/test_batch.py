"""Batches: archives, limits, and bad files among good ones."""

import csv
import io
import stat
import struct
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from fracture_lib import ALL_MODELS, CLASSES, InferencePipeline, InvalidImage
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import ModelUnavailable
from fracture_lib.inference.archives import MAX_DIRECTORY
from fracture_lib.inference.batch import MAX_IMAGES, BatchRow, list_inputs, predict_batch, tally
from fracture_lib.inference.batch_csv import COLUMNS, to_csv
from tests.helpers.dicom_files import dicom
from tests.helpers.images import encode_image

PNG = encode_image(synthetic_radiograph("Spiral", width=120, height=180))
DICOM = dicom(np.asarray(synthetic_radiograph("Spiral", width=64, height=96)))


@pytest.fixture(scope="module")
def pipeline():
    return InferencePipeline()


def write_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def read_members(path):
    """Rows whose result is the bytes of each member, without a model."""
    reader = SimpleNamespace(predict=lambda source, *_: source)
    return list(predict_batch(reader, list_inputs([path])))


def test_list_inputs_lists_files_and_zip_members_without_metadata(tmp_path, image_path):
    members = {
        "a/one.png": PNG,
        "../../two.png": PNG,
        "__MACOSX/a/._one.png": b"",
        ".DS_Store": b"",
        "a/": b"",
    }
    path = write_zip(tmp_path / "images.zip", members)
    assert [i.name for i in list_inputs([image_path, path])] == [image_path.name, "a/one.png", "two.png"]


def test_predict_batch_with_bad_members_answers_the_others(tmp_path, pipeline):
    bomb = b"\0" * 80_000_000
    inner = write_zip(tmp_path / "inner.zip", {"image.png": PNG}).read_bytes()
    members = {"good.png": PNG, "bad.png": b"text", "bomb.png": bomb, "nested.png": inner, "last.png": PNG}
    path = write_zip(tmp_path / "images.zip", members)
    rows = list(predict_batch(pipeline, list_inputs([path])))
    assert [row.name for row in rows] == list(members)
    assert [row.result is not None for row in rows] == [True, False, False, False, True]
    problems = ("Unsupported file", "too large once unpacked", "ZIP inside")
    for row, words in zip(rows[1:4], problems, strict=True):
        assert words in row.error
    assert list(rows[0].result.predictions) == list(ALL_MODELS)


def test_predict_batch_with_encrypted_member_asks_for_a_zip_without_password(tmp_path, pipeline):
    path = write_zip(tmp_path / "images.zip", {"image.png": PNG})
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    path.write_bytes(data)
    [row] = predict_batch(pipeline, list_inputs([path]))
    assert row.result is None and "password" in row.error


def test_list_inputs_of_nothing_raises_invalid_image():
    with pytest.raises(InvalidImage, match="Add images or a ZIP first"):
        list_inputs([])


def test_list_inputs_above_the_limit_states_it(tmp_path):
    many = write_zip(tmp_path / "many.zip", {f"{i}.png": b"" for i in range(MAX_IMAGES + 1)})
    with pytest.raises(InvalidImage, match=rf"\({MAX_IMAGES + 1}\); the limit is {MAX_IMAGES}"):
        list_inputs([many])


def test_list_inputs_of_damaged_zip_raises_invalid_image(tmp_path):
    damaged = write_zip(tmp_path / "damaged.zip", {"image.png": PNG})
    damaged.write_bytes(damaged.read_bytes().replace(b"PK\x01\x02", b"nope"))
    with pytest.raises(InvalidImage, match="damaged"):
        list_inputs([damaged])


def test_list_inputs_of_zip_with_huge_directory_does_not_read_it(tmp_path):
    path = tmp_path / "list.zip"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65_535, 65_535, MAX_DIRECTORY + 1, 0, 0)
    path.write_bytes(bytes(MAX_DIRECTORY + 1) + end)
    with pytest.raises(InvalidImage, match="too many files"):
        list_inputs([path])


def test_list_inputs_limits_the_unpacked_size_of_a_zip(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "images.zip", {f"{i}.png": PNG for i in range(3)})
    monkeypatch.setattr("fracture_lib.inference.archives.MAX_UNPACKED", 3 * len(PNG))
    assert len(list_inputs([path])) == 3
    monkeypatch.setattr("fracture_lib.inference.archives.MAX_UNPACKED", 3 * len(PNG) - 1)
    with pytest.raises(InvalidImage, match="unpacks to more than"):
        list_inputs([path])


def test_predict_batch_with_link_or_rare_compression_says_so(tmp_path):
    path, link = tmp_path / "images.zip", zipfile.ZipInfo("link.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("lzma.png", PNG, zipfile.ZIP_LZMA)
        archive.writestr("image.png", PNG)
    of_link, of_lzma, of_image = read_members(path)
    assert of_link.result is None and "link" in of_link.error
    assert of_lzma.result is None and "compression method" in of_lzma.error
    assert of_image.result == PNG


def test_predict_batch_with_false_size_in_zip_unpacks_no_more(tmp_path):
    path = write_zip(tmp_path / "images.zip", {"image.png": PNG * 50})
    data = bytearray(path.read_bytes())
    size = len(PNG * 50).to_bytes(4, "little")
    for _ in range(2):  # in the member's header and in the directory
        at = data.index(size)
        data[at : at + 4] = len(PNG).to_bytes(4, "little")
    path.write_bytes(data)
    [row] = read_members(path)
    assert row.result is None and "cannot be unpacked" in row.error


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_predict_batch_with_odd_names_keeps_every_image_and_leaves_no_folder(tmp_path):
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(
            ["/etc/passwd.png", "../../up.png", "same.png", "same.png", 60_000 * "l" + ".png"]
        ):
            archive.writestr(name, bytes([number]))
        archive.writestr("null.png_byte", bytes([5]))
    path.write_bytes(path.read_bytes().replace(b"null.png_", b"null.png\0"))
    rows = read_members(path)
    names = ["etc/passwd.png", "up.png", "same.png", "same.png (2)", 60_000 * "l" + ".png", "null.png"]
    assert [row.name for row in rows] == names
    assert [row.result for row in rows] == [bytes([number]) for number in range(6)]


# What is an image


def test_list_inputs_of_a_hospital_disc_lists_its_images_and_counts_the_rest(tmp_path):
    path = write_zip(
        tmp_path / "disc.zip",
        {
            "AUTORUN.INF": b"[autorun]",
            "DICOMDIR": bytes(128) + b"DICM",
            "INDEX.DIR": bytes(128) + b"DICM\2\0\2\0UI\x14\x001.2.840.10008.1.3.10",
            "README": b"Read me.",
            "REPORT.PDF": b"%PDF-1.4",
            "Thumbs.db": b"\xd0\xcf\x11\xe0",
            **{f"VIEWER/{number}.DLL": b"MZ" for number in range(MAX_IMAGES + 50)},
            "VIEWER/help.html": b"<html>",
            "DICOM/PA0/IM000001": DICOM,
            "DICOM/PA0/1.2.840.5": DICOM,
            "DICOM/data.dat": DICOM,
            "scan": PNG,
        },
    )
    batch = list_inputs([path])
    assert [i.name for i in batch] == ["DICOM/PA0/IM000001", "DICOM/PA0/1.2.840.5", "DICOM/data.dat", "scan"]
    n = MAX_IMAGES + 50 + 6
    assert batch.left_out == f"{n} files in disc.zip are not images and were left out."


def test_list_inputs_of_zip_without_images_says_what_was_left_out(tmp_path):
    path = write_zip(tmp_path / "notes.zip", {"notes.txt": b"text"})
    with pytest.raises(InvalidImage, match=r"no image in the ZIP\. .* 1 file in notes.zip is not an image"):
        list_inputs([path])


def test_list_inputs_with_empty_zip_among_others_reports_it(tmp_path, image_path):
    empty = write_zip(tmp_path / "empty.zip", {})
    batch = list_inputs([empty, image_path])
    assert [(i.name, bool(i.error)) for i in batch] == [("empty.zip", True), (image_path.name, False)]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP"])
def test_list_inputs_of_image_with_a_zip_behind_it_is_the_image(tmp_path, format):
    image = tmp_path / "image.jpg"
    inner = write_zip(tmp_path / "inner.zip", {"metadata.xml": b"<xml/>"}).read_bytes()
    image.write_bytes(encode_image(synthetic_radiograph("Spiral"), format) + inner)
    outer = write_zip(tmp_path / "outer.zip", {"image.jpg": image.read_bytes()})
    assert [i.name for i in list_inputs([image])] == ["image.jpg"]
    assert read_members(outer)[0].result == image.read_bytes()


def test_list_inputs_with_damaged_zip_among_others_keeps_the_others(tmp_path, image_path, pipeline):
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(write_zip(tmp_path / "x.zip", {"x.png": PNG}).read_bytes()[:60])
    rows = list(predict_batch(pipeline, list_inputs([damaged, image_path]), models=["resnet50"]))
    assert [(row.name, row.status) for row in rows] == [
        ("damaged.zip", "unreadable"),
        (image_path.name, "answered"),
    ]
    assert "damaged" in rows[0].error


def test_list_inputs_leaves_out_what_a_system_adds(tmp_path, image_path):
    hidden = tmp_path / "._x.jpg"
    hidden.write_bytes(b"")
    assert [i.name for i in list_inputs([hidden, image_path])] == [image_path.name]


# Names


def test_list_inputs_with_equal_names_tells_them_apart(tmp_path, image_path):
    first = write_zip(tmp_path / "a.zip", {"anna/IM1": DICOM, "berta/IM1": DICOM})
    (tmp_path / "other").mkdir()
    second = write_zip(tmp_path / "other" / "a.zip", {"anna/IM1": DICOM})
    assert [i.name for i in list_inputs([first])] == ["anna/IM1", "berta/IM1"]
    assert [i.name for i in list_inputs([first, second, image_path, image_path])] == [
        "a.zip/anna/IM1",
        "a.zip/berta/IM1",
        "a.zip (2)/anna/IM1",
        image_path.name,
        f"{image_path.name} (2)",
    ]


def test_list_inputs_with_full_paths_keeps_them(tmp_path, image_path):
    path = write_zip(tmp_path / "a.zip", {"anna/IM1": DICOM})
    names = [i.name for i in list_inputs([path, image_path], limit=None, full_paths=True)]
    assert names == [f"{path}/anna/IM1", str(image_path)]


# CSV


def test_tally_adds_up():
    statuses = ["answered", "unreadable", "answered", "failed", "rejected"]
    assert tally(statuses) == "5 images: 2 answered, 1 rejected, 1 failed, 1 unreadable."
    assert tally(["unreadable"]) == "1 image: 0 answered, 1 unreadable."


def read_csv(rows):
    return list(csv.DictReader(io.StringIO(to_csv(rows))))


def test_to_csv_holds_ranks_and_all_probabilities_and_no_formula(tmp_path, pipeline):
    path = write_zip(tmp_path / "images.zip", {"=cmd()|'A1'.png": PNG, "bad.png": b"x"})
    lines = read_csv(predict_batch(pipeline, list_inputs([path])))
    assert list(lines[0]) == list(COLUMNS) and COLUMNS[1:4] == ("status", "fracture", "fracture_probability")
    assert [line["model"] for line in lines] == [*ALL_MODELS, ""]
    assert [line["status"] for line in lines] == [*len(ALL_MODELS) * ["answered"], "unreadable"]
    assert lines[0]["image"] == "./=cmd()|'A1'.png" and "nsupported file" in lines[-1]["error"]
    for line in lines[:-1]:
        assert sum(float(line[c.label]) for c in CLASSES) == pytest.approx(1, abs=1e-3)
        ranks = [line[f"rank_{rank}"] for rank in (1, 2, 3)]
        assert ranks[0] == max((c.label for c in CLASSES), key=lambda label: float(line[label]))
        assert len({*ranks}) == 3
        assert line["fracture"] in ("visible", "uncertain", "none")
        assert 0 <= float(line["fracture_probability"]) <= 1
        assert line["summary"] and not line["error"]


def test_to_csv_has_a_line_for_each_failed_model(pipeline, image_path, monkeypatch):
    def fail(reference):
        if reference in ("pytorch-cnn", "resnet50"):
            raise ModelUnavailable("No weights.")
        return get_model(reference)

    get_model = pipeline.get_model
    monkeypatch.setattr(pipeline, "get_model", fail)
    lines = {line["model"]: line for line in read_csv(predict_batch(pipeline, list_inputs([image_path])))}
    assert {name: line["status"] for name, line in lines.items()} == {
        "pytorch-cnn": "failed",
        "tensorflow-cnn": "answered",
        "resnet50": "failed",
        "ensemble": "failed",
    }
    assert lines["resnet50"]["error"] == "No weights." and lines["tensorflow-cnn"]["rank_1"]


def test_to_csv_of_rejected_image_is_one_line_with_the_reason(pipeline):
    colours = np.zeros((64, 64, 3), np.uint8)
    colours[..., 0] = np.arange(64) * 4
    colours[..., 1] = colours[..., 0].T
    result = pipeline.predict(colours)
    [line] = read_csv([BatchRow("colours.png", result)])
    assert line["status"] == "rejected" and "colour" in line["error"] and not line["warnings"]
    assert line["fracture"] == line["fracture_probability"] == ""


def test_to_csv_holds_the_whole_of_a_long_name_and_its_warnings(pipeline, image_path):
    result = replace(pipeline.predict(image_path, ["resnet50"]), warnings=("The first of 2 frames.",))
    [line] = read_csv([BatchRow(500 * "n", result)])
    assert line["image"] == 500 * "n" and line["warnings"] == "The first of 2 frames."
