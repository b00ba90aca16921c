"""Many films at once: archives, limits, bad files among good ones."""

import csv
import io
import stat
import struct
import zipfile
from types import SimpleNamespace

import pytest
from bad_images import saved

from fracture_lib import CLASSES, InvalidImage
from fracture_lib.batch import MAX_DIRECTORY, MAX_FILMS, ask_each, collect, to_csv
from fracture_lib.drawing import draw_film
from fracture_lib.panel import EVERYONE, Panel

FILM = saved(draw_film("Spiral", width=120, height=180))


@pytest.fixture(scope="module")
def panel():
    return Panel()


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_files_and_archives_are_listed_together_and_rubbish_is_not(tmp_path, film):
    members = {
        "a/one.png": FILM,
        "../../two.png": FILM,
        "__MACOSX/a/._one.png": b"",
        ".DS_Store": b"",
        "a/": b"",
    }
    path = zipped(tmp_path / "films.zip", members)
    assert [name for name, _, _ in collect([film, path])] == [film.name, "one.png", "two.png"]


def test_one_bad_film_stops_nothing(tmp_path, panel):
    bomb = b"\0" * 80_000_000
    inner = zipped(tmp_path / "inner.zip", {"film.png": FILM}).read_bytes()
    members = {
        "good.png": FILM,
        "bad.png": b"no picture",
        "bomb.png": bomb,
        "nested.png": inner,
        "last.png": FILM,
    }
    path = zipped(tmp_path / "films.zip", members)
    rows = list(ask_each(panel, collect([path])))
    assert [name for name, _, _ in rows] == list(members)
    assert [result is not None for _, result, _ in rows] == [True, False, False, False, True]
    for (_, _, sentence), word in zip(rows[1:4], ("not a picture", "too much", "ZIP inside"), strict=True):
        assert word in sentence
    assert list(rows[0][1].predictions) == list(EVERYONE)


def test_an_encrypted_member_says_so(tmp_path, panel):
    path = zipped(tmp_path / "films.zip", {"film.png": FILM})
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    path.write_bytes(data)
    [(_, result, sentence)] = ask_each(panel, collect([path]))
    assert result is None and "password" in sentence


def test_nothing_and_too_much_are_refused(tmp_path):
    with pytest.raises(InvalidImage, match="no film"):
        collect([])
    many = zipped(tmp_path / "many.zip", {f"{i}.png": b"" for i in range(MAX_FILMS + 1)})
    with pytest.raises(InvalidImage, match=str(MAX_FILMS)):
        collect([many])
    broken = tmp_path / "broken.zip"
    broken.write_bytes(many.read_bytes().replace(b"PK\x01\x02", b"nope"))
    with pytest.raises(InvalidImage, match="damaged"):
        collect([broken])


def read(path):
    """[(name, bytes or None, sentence)] of each film in a ZIP."""
    return list(ask_each(SimpleNamespace(ask=lambda source, **_: source), collect([path])))


def test_a_long_list_of_files_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "list.zip"
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65_535, 65_535, MAX_DIRECTORY + 1, 0, 0)
    path.write_bytes(bytes(MAX_DIRECTORY + 1) + end)
    with pytest.raises(InvalidImage, match="too many files"):
        collect([path])


def test_all_films_together_may_not_unpack_to_too_much(tmp_path, monkeypatch):
    path = zipped(tmp_path / "films.zip", {f"{i}.png": FILM for i in range(3)})
    monkeypatch.setattr("fracture_lib.batch.MAX_UNPACKED", 3 * len(FILM))
    assert len(collect([path])) == 3
    monkeypatch.setattr("fracture_lib.batch.MAX_UNPACKED", 3 * len(FILM) - 1)
    with pytest.raises(InvalidImage, match="unpacks to over"):
        collect([path])


def test_links_and_rare_packing_say_so(tmp_path):
    path, link = tmp_path / "films.zip", zipfile.ZipInfo("link.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("lzma.png", FILM, zipfile.ZIP_LZMA)
        archive.writestr("film.png", FILM)
    (_, first, of_link), (_, second, of_lzma), (_, third, _) = read(path)
    assert first is None and "link" in of_link
    assert second is None and "rare way" in of_lzma
    assert third == FILM


def test_a_size_that_lies_unpacks_no_more(tmp_path):
    path = zipped(tmp_path / "films.zip", {"film.png": FILM * 50})
    data = bytearray(path.read_bytes())
    size = len(FILM * 50).to_bytes(4, "little")
    for _ in range(2):  # beside the film and in the list
        at = data.index(size)
        data[at : at + 4] = len(FILM).to_bytes(4, "little")
    path.write_bytes(data)
    [(_, result, sentence)] = read(path)
    assert result is None and "cannot be unpacked" in sentence


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_odd_names_lead_nowhere_and_hide_no_film(tmp_path):
    path = tmp_path / "films.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number, name in enumerate(["/etc/passwd", "../../up.png", "same.png", "same.png", "l" * 60_000]):
            archive.writestr(name, bytes([number]))
        archive.writestr("null_byte.png", bytes([5]))
    path.write_bytes(path.read_bytes().replace(b"null_byte", b"null\0byte"))
    rows = read(path)
    assert [name for name, _, _ in rows] == ["passwd", "up.png", "same.png", "same.png", "l" * 100, "null"]
    assert [data for _, data, _ in rows[:5]] == [bytes([number]) for number in range(5)]


def test_the_csv_holds_every_probability_and_no_formula(tmp_path, panel):
    path = zipped(tmp_path / "films.zip", {"=cmd()|'A1'.png": FILM, "bad.png": b"x"})
    lines = list(csv.DictReader(io.StringIO(to_csv(list(ask_each(panel, collect([path])))))))
    assert [line["model"] for line in lines] == [*EVERYONE, ""]
    assert lines[0]["film"].startswith("'=") and "not a picture" in lines[-1]["note"]
    for line in lines[:-1]:
        assert sum(float(line[c.label]) for c in CLASSES) == pytest.approx(1, abs=1e-3)
        assert float(line[line["answer"]]) == max(float(line[c.label]) for c in CLASSES)
