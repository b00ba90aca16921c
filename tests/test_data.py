import shutil

import numpy as np
import pytest
from PIL import Image, ImageOps

from fracture_lib.data import folds, load_films, near_copies, pixels_of
from fracture_lib.drawing import draw_film
from fracture_lib.errors import InvalidData, UnknownLabel
from fracture_lib.labels import CLASSES


def lay_out(root, pattern, seeds=(0,)):
    for c in CLASSES:
        for seed in seeds:
            path = root / pattern.format(c=c.label) / f"{c.label}-{seed}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw_film(c.label, seed, width=64, height=96).save(path)
    return root


@pytest.mark.parametrize("pattern", ["{c} fracture/Test", "test/{c}", "{c}", "Test/{c} Fracture"])
def test_every_layout_is_read_alike(pattern, tmp_path):
    films = load_films(lay_out(tmp_path / "a", pattern), "Test")
    plain = load_films(lay_out(tmp_path / "b", "{c}"))
    assert sorted(films.labels) == list(range(10))
    assert films.fingerprint == plain.fingerprint
    assert pixels_of(films).shape == (10, 1, 128, 128)


def test_only_the_asked_split_is_read(tmp_path):
    lay_out(lay_out(tmp_path, "{c}/Train", (0, 1)), "{c}/Test", (2,))
    assert len(load_films(tmp_path, "train").paths) == 20
    assert len(load_films(tmp_path, "Test").paths) == 10
    assert len(load_films(tmp_path).paths) == 30
    with pytest.raises(InvalidData, match=r"split Valid.*found 30 pictures.*test, train"):
        load_films(tmp_path, "Valid")


def test_a_manifest_groups_films(film_folder):
    films = load_films(film_folder, "Train")
    assert films.grouped_by == "source_group" and len(set(films.groups)) == 40


def test_without_a_manifest_near_copies_are_grouped(tmp_path):
    lay_out(tmp_path, "{c}")
    film = draw_film("Spiral", 0)
    copies = {
        "mirrored.png": ImageOps.mirror(film),
        "turned.png": film.rotate(90, expand=True),
        "smaller.png": film.resize((120, 180)),
        "brighter.png": film.point(lambda v: min(255, v + 20)),
    }
    film.save(tmp_path / "Spiral" / "original.png")
    for name, image in copies.items():
        image.save(tmp_path / "Spiral" / name)
    film.save(tmp_path / "Oblique" / "resaved.jpg", quality=60)  # a copy under another label
    films = load_films(tmp_path)
    assert films.grouped_by == "perceptual hash"
    group = {path.name: g for path, g in zip(films.paths, films.groups, strict=True)}
    assert len({group[n] for n in ("original.png", "resaved.jpg", *copies)}) == 1


def test_films_that_differ_are_not_grouped(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for i in range(6):
        coarse = Image.fromarray(rng.integers(0, 255, (6, 6), np.uint8))
        paths.append(tmp_path / f"{i}.png")
        coarse.resize((96, 96), Image.Resampling.BICUBIC).save(paths[-1])
    assert len(set(near_copies(paths))) == 6


def test_folds_keep_groups_whole_and_classes_spread(film_folder):
    films = load_films(film_folder, "Train")
    grouped = type(films)(**{**vars(films), "groups": np.arange(40) // 2})
    fold = folds(grouped, 2)
    for g in range(20):
        assert len(set(fold[grouped.groups == g])) == 1
    for f in range(2):
        assert (np.bincount(grouped.labels[fold == f], minlength=10) == 2).all()
    assert (fold == folds(grouped, 2)).all(), "the split is the same every time"


def test_a_wrong_folder_says_what_was_found_and_expected(tmp_path, film_folder):
    with pytest.raises(InvalidData, match="There is no folder"):
        load_films(tmp_path / "nowhere")
    with pytest.raises(InvalidData, match=r"found 0 pictures.*expected <class>/<split>/film.jpg"):
        load_films(tmp_path)
    draw_film("Spiral").save(tmp_path / "loose.png")
    with pytest.raises(InvalidData, match=r"class of loose\.png"):
        load_films(tmp_path)
    (tmp_path / "loose.png").unlink()
    shutil.copytree(film_folder / "Spiral fracture", tmp_path / "Torus fracture")
    with pytest.raises(UnknownLabel, match='"Torus fracture"'):
        load_films(tmp_path)


def test_a_damaged_film_is_named(tmp_path):
    lay_out(tmp_path, "{c}")
    (tmp_path / "Spiral" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InvalidData, match=r"broken\.png"):
        pixels_of(load_films(tmp_path))


def test_a_manifest_without_groups_is_refused(tmp_path):
    lay_out(tmp_path, "{c}")
    (tmp_path / "manifest.csv").write_text("path,label\na,b\n")
    with pytest.raises(InvalidData, match="source_group"):
        load_films(tmp_path)
