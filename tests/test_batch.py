"""Many films at once: archives, limits, bad files among good ones."""

import csv
import io
import zipfile

import pytest
from bad_images import saved

from fracture_lib import CLASSES, InvalidImage
from fracture_lib.batch import MAX_FILMS, ask_each, collect, to_csv
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


def test_the_csv_holds_every_probability_and_no_formula(tmp_path, panel):
    path = zipped(tmp_path / "films.zip", {"=cmd()|'A1'.png": FILM, "bad.png": b"x"})
    lines = list(csv.DictReader(io.StringIO(to_csv(list(ask_each(panel, collect([path])))))))
    assert [line["model"] for line in lines] == [*EVERYONE, ""]
    assert lines[0]["film"].startswith("'=") and "not a picture" in lines[-1]["note"]
    for line in lines[:-1]:
        assert sum(float(line[c.label]) for c in CLASSES) == pytest.approx(1, abs=1e-3)
        assert float(line[line["answer"]]) == max(float(line[c.label]) for c in CLASSES)
