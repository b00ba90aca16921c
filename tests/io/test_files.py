"""Which files are images: names that systems add, leading bytes, and names alone."""

from pathlib import PurePosixPath

import numpy as np
import pytest

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.io.files import HEAD_BYTES, could_be_image, is_image_file, is_metadata, looks_like_image
from tests.helpers.dicom_files import dicom
from tests.helpers.images import encode_image

IMAGE = synthetic_radiograph("Spiral", width=64, height=96)
DICOM = dicom(np.asarray(IMAGE))
DIRECTORY = bytes(128) + b"DICM\x02\0\x02\0UI\x14\x001.2.840.10008.1.3.10\x02\0\x10\0UI\x14\0"


@pytest.mark.parametrize(
    "path",
    [
        ".DS_Store",
        "a/._x.jpg",
        "__MACOSX/a/x.jpg",
        "__macosx/x.jpg",
        "a/.ipynb_checkpoints/x.png",
        "a/Thumbs.db",
        "THUMBS.DB",
        "Desktop.ini",
        "$RECYCLE.BIN/x.png",
    ],
)
def test_is_metadata_of_what_a_system_adds_is_true(path):
    assert is_metadata(PurePosixPath(path).parts)


@pytest.mark.parametrize("path", ["x.jpg", "../x.jpg", "./x.jpg", "a/thumbs.jpg", "MACOSX/x.png"])
def test_is_metadata_of_other_paths_is_false(path):
    assert not is_metadata(path.split("/"))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF"])
def test_looks_like_image_of_each_readable_format_is_true(format):
    assert looks_like_image(encode_image(IMAGE, format)[:HEAD_BYTES])


def test_looks_like_image_of_dicom_is_true_and_of_its_directory_false():
    assert looks_like_image(DICOM[:HEAD_BYTES])
    assert not looks_like_image(DIRECTORY)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"MZ\x90\0",
        b"%PDF-1.7",
        b"<!doctype html>",
        b"[autorun]\r\n",
        b"BMW drives a car\0\0\0",
        b"\0" * 99,
    ],
)
def test_looks_like_image_of_other_files_is_false(head):
    assert not looks_like_image(head)


@pytest.mark.parametrize(
    ("name", "head", "expected"),
    [
        ("IM000001", DICOM, True),
        ("data.dat", DICOM, True),
        ("photo", encode_image(IMAGE, "JPEG"), True),
        ("viewer.dll", encode_image(IMAGE), True),  # the bytes decide
        ("x.png", b"damaged", True),  # its error is reported
        ("x.heic", b"\0\0\0\x18ftypheic", True),
        ("DICOMDIR", DICOM, False),
        ("dicomdir", DIRECTORY, False),
        ("index", DIRECTORY, False),
        ("readme.txt", b"text", False),
        ("README", b"text", False),
        ("1.2.840.10008", None, True),
        ("IM000001", None, True),
        ("viewer.exe", None, False),
    ],
)
def test_could_be_image_leaves_out_only_what_plainly_is_not_one(name, head, expected):
    assert could_be_image(name, head) is expected


def test_is_image_file_reads_the_head_where_the_name_does_not_tell(tmp_path):
    for name, data in {
        "a": encode_image(IMAGE, "JPEG"),
        "b.txt": b"text",
        "c.jfif": b"",
        "d.1": DICOM,
    }.items():
        (tmp_path / name).write_bytes(data)
    assert [p.name for p in sorted(tmp_path.iterdir()) if is_image_file(p)] == ["a", "c.jfif", "d.1"]
