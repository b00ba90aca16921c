"""manifest.csv as spreadsheets and other systems write it: read, or one message; no group is ever lost."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fracture_lib.data.dataset import load_dataset_folder
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidData

PATHS = ("Avulsion/Müller 1.png", "Avulsion/b.png", "Spiral/Müller 2.png", "Spiral/d.png")
GROUPS = ("Müller", "x", "Müller", "y")
ROWS = list(zip(PATHS, GROUPS, strict=True))


@pytest.fixture
def data(tmp_path) -> Path:
    """A folder with the images PATHS."""
    for i, path in enumerate(PATHS):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        blobs = np.random.default_rng(i).integers(0, 255, (12, 12), np.uint8)
        Image.fromarray(blobs).resize((48, 48)).save(tmp_path / path)
    return tmp_path


def table(rows=ROWS, header="path,source_group", delimiter=",", newline="\n"):
    return newline.join([header.replace(",", delimiter), *(delimiter.join(row) for row in rows), ""])


def load(data, content, encoding="utf-8"):
    """Write manifest.csv and return the images."""
    content = content if isinstance(content, bytes) else content.encode(encoding)
    (data / "manifest.csv").write_bytes(content)
    return load_dataset_folder(data)


def expect_groups(images):
    assert images.grouped_by == "source_group"
    assert [path.name for path in images.paths] == [Path(path).name for path in PATHS]
    first, second, third, last = images.groups
    assert first == third and len({first, second, last}) == 3


def renamed(function):
    return table([(function(path), group) for path, group in ROWS])


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "cp1252", "latin-1", "utf-16", "utf-16-le", "utf-16-be"],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_manifest_of_any_spreadsheet_gives_its_groups(data, encoding, delimiter, newline):
    expect_groups(load(data, table(delimiter=delimiter, newline=newline), encoding))


@pytest.mark.parametrize(
    "spell",
    [
        lambda path: path.replace("/", "\\"),
        lambda path: f"./{path}",
        lambda path: f".\\{path}".replace("/", "\\"),
        lambda path: f"/home/anna/bones/{path}",
        lambda path: f"C:\\Users\\anna\\{path}".replace("/", "\\"),
        lambda path: f"../bones/{path}",
        lambda path: f"bones//{path}",
        lambda path: f" {path} ",
        lambda path: f'"{path}"',
        str.upper,
        str.lower,
        lambda path: unicodedata.normalize("NFD", path),
    ],
)
def test_manifest_with_paths_of_another_system_gives_its_groups(data, spell):
    expect_groups(load(data, renamed(spell)))


def test_manifest_with_composed_names_of_files_that_are_decomposed_gives_its_groups(data):
    for path in PATHS:
        (data / path).rename(data / unicodedata.normalize("NFD", path))
    images = load(data, table())
    assert images.grouped_by == "source_group" and images.groups[0] == images.groups[2]


@pytest.mark.parametrize(
    "header",
    ["Path,Source_Group", " path , source_group ", "PATH,SOURCE GROUP", "path,source_group,,"],
)
def test_manifest_with_another_spelling_of_its_header_gives_its_groups(data, header):
    expect_groups(load(data, table(header=header)))


@pytest.mark.parametrize("before", ["\n\n", "sep=,\n", "\ufeffsep=,\n"])
def test_manifest_with_lines_before_its_header_gives_its_groups(data, before):
    expect_groups(load(data, before + table()))


def test_manifest_with_more_columns_and_blank_lines_gives_its_groups(data):
    rows = [("1", path, "label", group) for path, group in ROWS]
    expect_groups(load(data, table([*rows, ("", "", "", "")], "id,path,label,source_group") + "\n\n"))


def test_manifest_with_another_letter_case_in_its_name_gives_its_groups(data):
    (data / "Manifest.CSV").write_text(table(), encoding="utf-8")
    expect_groups(load_dataset_folder(data))


def test_manifest_with_rows_of_missing_images_gives_its_groups(data):
    expect_groups(load(data, table([("Spiral/gone.png", "z"), *ROWS])))


def test_manifest_tells_images_apart_that_differ_in_letter_case(data):
    if (data / "spiral").exists():
        pytest.skip("this file system ignores letter case")
    synthetic_radiograph("Spiral").save(data / "Spiral" / "D.png")
    images = load(data, table([*ROWS, ("Spiral/D.png", "z")]))
    assert images.grouped_by == "source_group" and len(set(images.groups)) == 4
    with pytest.raises(InvalidData, match=r"line 2: spiral/d\.png fits several images"):
        load(data, table([("spiral/d.png", "z"), *ROWS]))


def test_manifest_with_a_row_repeated_gives_its_groups(data):
    expect_groups(load(data, table([*ROWS, ROWS[0]])))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (table([*ROWS, (PATHS[0].upper(), "z")]), "line 6: .* has another source_group than in line 2"),
        (table([*ROWS, ("", "z")]), "line 6: the path is empty"),
        (table([ROWS[0], ("Spiral/d.png",)]), "line 3: it has 1 cells, not 2"),
        (table([("Spiral/a,d.png", "y"), *ROWS]), 'line 2: it has 3 cells, not 2.* holds ","'),
        (table([('"Spiral/d.png', "y"), *ROWS]), "line 6: it cannot be read"),
        (table([("x/a.png", "y")]), r"lists none of the images in .*, such as Avulsion/Müller 1\.png"),
        (table([]), "lists none of the images"),
        ("", "needs the columns path and source_group"),
        (table(header="path,label"), "needs the columns path and source_group"),
        (table(header="path,source_group,path"), "has a column twice"),
        (table(header="path,source_group").encode("utf-16")[:-1], "Save it as UTF-8"),
        (b"\0\1\2\3" * 9, "needs the columns"),
        (table().replace("ü", "你").encode("gbk"), "Save it as UTF-8 with the paths as they are"),
    ],
)
def test_manifest_that_is_wrong_is_one_message(data, content, message):
    with pytest.raises(InvalidData, match=f"^manifest.csv.*{message}") as raised:
        load(data, content)
    assert "\n" not in str(raised.value)


def test_manifest_that_misspells_an_image_names_its_line_and_the_image(data):
    rows = [*ROWS[:3], ("Spiral/dd.png", "Müller")]
    with pytest.raises(
        InvalidData, match=r"without an image: 1, .* line 5 \(Spiral/dd\.png\); images without a row: 1,"
    ):
        load(data, table(rows))


def test_two_manifests_are_one_message(data):
    (data / "MANIFEST.csv").write_text(table(), encoding="utf-8")
    if (data / "manifest.csv").exists():
        pytest.skip("this file system ignores letter case")
    with pytest.raises(InvalidData, match=r"holds MANIFEST\.csv and manifest\.csv\. Keep one"):
        load(data, table())


@pytest.mark.parametrize("folder", ["Avulsion", "data/old"])
def test_manifest_in_a_subfolder_is_one_message(data, folder):
    (data / folder).mkdir(parents=True, exist_ok=True)
    (data / folder / "manifest.csv").write_text(table(), "utf-8")
    with pytest.raises(InvalidData, match=rf"{folder}/manifest\.csv is in a subfolder\. Move it to"):
        load_dataset_folder(data)


def test_manifest_beside_the_folder_is_a_warning(data, caplog):
    (data / "manifest.csv").write_text(table(), "utf-8")
    (data / "Train").mkdir()
    for name in ("Avulsion", "Spiral"):
        (data / name).rename(data / "Train" / name)
    load_dataset_folder(data / "Train")
    assert "manifest.csv beside Train is not used. Give the folder above and a split." in caplog.text
