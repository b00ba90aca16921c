"""Sources of many images: what they list, in which order, and what reading one raises."""

import errno
import os
import shutil
import sys
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidData, InvalidImage
from fracture_lib.inference import sources
from fracture_lib.inference.sources import SourceImage, list_images, read_image
from tests.helpers.dicom_files import dicom
from tests.helpers.images import encode_image

PNG = encode_image(synthetic_radiograph("Spiral", width=64, height=96))
DICOM = dicom(np.asarray(synthetic_radiograph("Spiral", width=64, height=96)))
IMAGES = {"a.png": PNG, "b/IM1": DICOM, "b/c.png": PNG + b"2", "d.JPG": PNG}
FILES = {**IMAGES, "notes.txt": b"text", ".e.png": PNG}


def write(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def read_all(source):
    """Return the bytes of all images of a source by name, and the number of other files."""
    images = list(list_images(str(source)))
    found = [image for image in images if image]
    contents = {image.name: read_image(image) for image in found}
    assert len(contents) == len(found)
    return contents, len(images) - len(found)


def test_folder_lists_its_images_by_name_and_counts_other_files(tmp_path):
    contents, n_left_out = read_all(write(tmp_path, FILES))
    assert contents == IMAGES and list(contents) == list(IMAGES) and n_left_out == 1


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
def test_folder_with_links_follows_those_to_files_only(tmp_path):
    write(tmp_path / "scans", {"a.png": PNG})
    (tmp_path / "scans" / "loop").symlink_to(tmp_path / "scans")
    (tmp_path / "scans" / "b.png").symlink_to(tmp_path / "scans" / "a.png")
    assert list(read_all(tmp_path / "scans")[0]) == ["a.png", "b.png"]


def test_zip_lists_its_members_also_inside_a_folder(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"m/1.png": PNG, "2.dcm": DICOM, "viewer.exe": b"MZ"})
    expected = {"x.zip/m/1.png": PNG, "x.zip/2.dcm": DICOM}
    assert read_all(path) == read_all(tmp_path) == (expected, 1)


def test_zip_that_is_damaged_is_one_unreadable_image(tmp_path):
    [image] = list_images(str(write(tmp_path, {"x.zip": b"PK\3\4"})))
    assert image.name == "x.zip"
    with pytest.raises(InvalidImage, match="damaged"):
        read_image(image)


def test_zip_may_be_larger_than_an_upload(tmp_path, monkeypatch):
    monkeypatch.setattr("fracture_lib.inference.archives.MAX_UNPACKED", 1)
    monkeypatch.setattr("fracture_lib.inference.archives.MAX_DIRECTORY", 1)
    assert len(read_all(write_zip(tmp_path / "x.zip", {"1.png": PNG}))[0]) == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_list_names_paths_of_the_current_folder_and_addresses(tmp_path, monkeypatch, encoding):
    monkeypatch.chdir(write(tmp_path, {"scans/a.png": PNG}))
    fsspec.filesystem("memory").pipe("/listed.png", PNG)
    names = ["scans/a.png", "memory://listed.png", "gone.png", "gone.png ", "gone.v2", 300 * "x", "\0.png"]
    lines = ["# scans", *names[:1], "", " ", *names[1:]]
    Path("list.txt").write_text("\r\n".join(lines), encoding=encoding)
    images = list(list_images("list.txt"))
    assert [image.name for image in images] == names
    assert read_image(images[0]) == read_image(images[1]) == PNG
    for image in images[2:]:
        with pytest.raises(InvalidImage, match="Cannot open the file"):
            read_image(image)


def test_list_in_utf_16_that_is_cut_off_is_read_as_far_as_it_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path, {"a.png": PNG, "list.txt": "a.png\nb.png".encode("utf-16")[:-1]}))
    assert [image.name for image in list_images("list.txt")] == ["a.png", "b.pn\ufffd"]


def test_list_may_name_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path, {"scans/b/a.png": PNG, "scans/note.txt": b"note", "c.png": PNG}))
    Path("list.txt").write_text("scans/\nc.png\n")
    assert read_all("list.txt") == ({"scans/b/a.png": PNG, "c.png": PNG}, 1)


@pytest.mark.parametrize("address", ["memory://lake/scans", "memory://lake/scans/"])
def test_address_of_a_folder_lists_its_images(address):
    memory = fsspec.filesystem("memory")
    for name, data in FILES.items():
        memory.pipe(f"/lake/scans/{name}", data)
    contents, n_left_out = read_all(address)
    assert contents == IMAGES and n_left_out == 1


def test_address_of_a_pattern_lists_the_files_that_match():
    memory = fsspec.filesystem("memory")
    for name in ("pattern/a.png", "pattern/b/c.png", "pattern/b/c.dcm"):
        memory.pipe(f"/{name}", PNG)
    assert list(read_all("memory://pattern/**/*.png")[0]) == ["a.png", "b/c.png"]


def test_address_of_a_zip_lists_its_members(tmp_path):
    data = write_zip(tmp_path / "x.zip", {"m/1.png": PNG, "2.png": PNG}).read_bytes()
    fsspec.filesystem("memory").pipe("/zips/x.zip", data)
    expected = {"x.zip/2.png": PNG, "x.zip/m/1.png": PNG}
    assert read_all("memory://zips") == read_all("memory://zips/x.zip") == (expected, 0)
    assert read_all("zip://m::memory://zips/x.zip") == ({"1.png": PNG}, 0)


def test_pattern_on_this_machine_is_expanded(tmp_path):
    write(tmp_path, FILES)
    assert list(read_all(tmp_path / "**" / "*.png")[0]) == ["a.png", "b/c.png"]


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_file_holds_one_image_per_row(tmp_path, as_struct):
    contents = [PNG + bytes([i]) for i in range(5)]
    column = [{"bytes": data, "path": None} for data in contents] if as_struct else contents
    pq.write_table(pa.table({"image": column, "label": range(5)}), tmp_path / "x.parquet", row_group_size=2)
    pq.write_table(pa.table({"image": ["a name"]}), tmp_path / "other.parquet")
    assert read_all(tmp_path) == ({f"x.parquet/{i}": data for i, data in enumerate(contents)}, 1)


@pytest.mark.parametrize("damage", ["cut off", "footer", "row", "number of rows"])
def test_parquet_file_that_is_damaged_is_unreadable_and_stops_no_other(tmp_path, damage, monkeypatch):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [PNG, PNG]}), path)
    data = bytearray(path.read_bytes())
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    if damage == "cut off":
        del data[-1]
    elif damage == "footer":
        data[footer : footer + 20] = bytes(255 - byte for byte in data[footer : footer + 20])
    elif damage == "row":
        data[4:64] = bytes(60)
    path.write_bytes(data)
    if damage == "number of rows":
        monkeypatch.setattr(sources, "_first_rows", lambda _: [0, 4])
    write(tmp_path, {"y.png": PNG})
    *found, good = list_images(str(tmp_path))
    damaged = found[2:] if damage == "number of rows" else found
    assert len(damaged) == (2 if "row" in damage else 1)
    for image in damaged:
        with pytest.raises(InvalidImage, match="The Parquet file is damaged"):
            read_image(image)
    assert read_image(good) == PNG


def test_hub_dataset_lists_its_files_and_rows_at_the_commit(hub, tmp_path):
    pq.write_table(pa.table({"image": [PNG, DICOM]}), tmp_path / "x.parquet")
    files = {"data/x.parquet": (tmp_path / "x.parquet").read_bytes(), "a.png": PNG, "README.md": b"#"}
    sha = hub.add("someone/scans", files, kind="datasets")
    expected = {"a.png": PNG, "data/x.parquet/0": PNG, "data/x.parquet/1": DICOM}
    assert read_all("hf-hub:someone/scans") == (expected, 1)
    assert all(sha in image.address for image in list_images("hf-hub:someone/scans") if image)


@pytest.mark.parametrize("source", ["no folder", "memory://nowhere", "no.txt"])
def test_source_that_does_not_exist_raises_invalid_image(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidImage, match="There is no"):
        list(list_images(source))


@pytest.mark.parametrize("source", ["nosuch://bucket", "hf-hub:someone/nothing", "hf-hub:nothing"])
def test_source_that_cannot_be_listed_raises_invalid_data(source, hub):
    with pytest.raises(InvalidData):
        list(list_images(source))


def test_read_image_after_a_lost_connection_raises_invalid_data(monkeypatch):
    """As such an image can be read later, it must not become an unreadable one."""

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(sources, "_read", fail)
    with pytest.raises(InvalidData, match="Run the same command again"):
        read_image(SourceImage("a.png", "/a.png"))


def test_list_images_of_a_folder_that_changes_has_the_same_order(tmp_path):
    """Names order the images, not the file system."""
    for name in ("b.png", "a.png", "c/d.png"):
        write(tmp_path, {name: PNG})
    before = [image.name for image in list_images(str(tmp_path))]
    shutil.move(tmp_path / "a.png", tmp_path / "x")
    shutil.move(tmp_path / "x", tmp_path / "a.png")
    assert [image.name for image in list_images(str(tmp_path))] == before == ["a.png", "b.png", "c/d.png"]
