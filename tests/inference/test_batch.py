"""Batches: archives, limits, and bad files among good ones."""

import csv
import io
import stat
import struct
import zipfile
from types import SimpleNamespace

import pytest

from fracture_lib import ALL_MODELS, CLASSES, InferencePipeline, InvalidImage
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.inference.batch import MAX_DIRECTORY, MAX_IMAGES, list_inputs, predict_batch, to_csv
from tests.helpers.images import encode_image

PNG = encode_image(synthetic_radiograph("Spiral", width=120, height=180))


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
    assert [i.name for i in list_inputs([image_path, path])] == [image_path.name, "one.png", "two.png"]


def test_predict_batch_with_bad_members_answers_the_others(tmp_path, pipeline):
    bomb = b"\0" * 80_000_000
    inner = write_zip(tmp_path / "inner.zip", {"image.png": PNG}).read_bytes()
    members = {"good.png": PNG, "bad.png": b"text", "bomb.png": bomb, "nested.png": inner, "last.png": PNG}
    path = write_zip(tmp_path / "images.zip", members)
    rows = list(predict_batch(pipeline, list_inputs([path])))
    assert [row.name for row in rows] == list(members)
    assert [row.result is not None for row in rows] == [True, False, False, False, True]
    for row, words in zip(rows[1:4], ("Unsupported file", "unpacks to too much", "ZIP inside"), strict=True):
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
    monkeypatch.setattr("fracture_lib.inference.batch.MAX_UNPACKED", 3 * len(PNG))
    assert len(list_inputs([path])) == 3
    monkeypatch.setattr("fracture_lib.inference.batch.MAX_UNPACKED", 3 * len(PNG) - 1)
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
        for number, name in enumerate(["/etc/passwd", "../../up.png", "same.png", "same.png", "l" * 60_000]):
            archive.writestr(name, bytes([number]))
        archive.writestr("null_byte.png", bytes([5]))
    path.write_bytes(path.read_bytes().replace(b"null_byte", b"null\0byte"))
    rows = read_members(path)
    assert [row.name for row in rows] == ["passwd", "up.png", "same.png", "same.png", "l" * 100, "null"]
    assert [row.result for row in rows[:5]] == [bytes([number]) for number in range(5)]


def test_to_csv_holds_all_probabilities_and_no_formula(tmp_path, pipeline):
    path = write_zip(tmp_path / "images.zip", {"=cmd()|'A1'.png": PNG, "bad.png": b"x"})
    rows = list(predict_batch(pipeline, list_inputs([path])))
    lines = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [line["model"] for line in lines] == [*ALL_MODELS, ""]
    assert lines[0]["image"].startswith("'=") and "Unsupported file" in lines[-1]["warnings"]
    for line in lines[:-1]:
        assert sum(float(line[c.label]) for c in CLASSES) == pytest.approx(1, abs=1e-3)
        assert float(line[line["label"]]) == max(float(line[c.label]) for c in CLASSES)
