"""Refusal of what is no bone X-ray: what is named, what is far from the known films, what was measured."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fracture_lib import CLASSES, InvalidData, read_film
from fracture_lib.config import read_json
from fracture_lib.data import load_films
from fracture_lib.drawing import draw_film
from fracture_lib.hub import BUNDLE
from fracture_lib.panel import Panel
from fracture_lib.preprocess import preprocess
from fracture_lib.refusal import fit, judge

MEASURED = read_json(BUNDLE / "refusal" / "evaluation.json")


@pytest.fixture(scope="module")
def features():
    gatekeeper = Panel().gatekeeper()
    return lambda pixels: gatekeeper.answer(pixels).features


@pytest.fixture(scope="module")
def verdict(features):
    def verdict(film):
        return judge(film, features(preprocess(film)[None, None])[0])

    return verdict


def page_of_text():
    page = Image.new("L", (400, 560), 250)
    ImageDraw.Draw(page).multiline_text(
        (20, 20), "\n".join(["Findings: none of note. Follow up."] * 30), fill=10
    )
    return page


def drawing():
    picture = Image.new("L", (300, 300), 255)
    pen = ImageDraw.Draw(picture)
    pen.ellipse((60, 40, 240, 220), outline=0, width=4)
    pen.line((40, 280, 150, 160, 260, 280), fill=0, width=4)
    return picture


def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200), dtype=np.uint8))


@pytest.mark.parametrize("label", [c.label for c in CLASSES])
def test_drawn_films_are_let_through(verdict, label):
    assert not verdict(read_film(draw_film(label))).refused


@pytest.mark.parametrize("picture", [page_of_text, drawing, noise])
def test_other_pictures_are_refused_with_a_reason(verdict, picture):
    found = verdict(read_film(picture()))
    assert found.refused and found.distance > found.threshold
    assert found.sentence.startswith("This does not look like a bone X-ray. ") and "looks" in found.reason


def test_colour_and_modality_are_named(verdict):
    film = read_film(draw_film("Spiral"))
    assert "colour" in verdict(replace(film, colour=0.5)).reason
    assert "CT" in verdict(replace(film, modality="CT")).reason
    assert not verdict(replace(film, modality="DX")).refused


def test_what_was_measured_is_stated_and_keeps_its_promise():
    assert MEASURED["n"] == 989 and MEASURED["groups"] == 689
    assert MEASURED["false_refusal"]["low"] <= MEASURED["false_refusal"]["value"] < 0.05
    kinds = MEASURED["detection"]
    assert len(kinds) >= 5 and all(kind["n"] > 0 for kind in kinds.values())
    for kind in (
        "photographs_colour",
        "photographs_grey",
        "documents",
        "screenshots",
        "blank_noise",
        "drawings",
    ):
        assert kinds[kind]["n"] >= 30 and kinds[kind]["value"] > 0.6


def test_fitting_measures_other_kinds_and_is_the_same_again(film_folder, tmp_path, features):
    for kind, picture in {"documents": page_of_text, "noise": noise}.items():
        (tmp_path / "others" / kind).mkdir(parents=True)
        picture().save(tmp_path / "others" / kind / "one.png")
    (tmp_path / "others" / "noise" / "broken.png").write_bytes(b"no picture")
    films = load_films(film_folder)
    first, second = (fit(films, tmp_path / "others", features, tmp_path / name) for name in ("a", "b"))
    assert first == second and first["n"] == 40 and first["detection"]["noise"]["n"] == 2
    for name in ("known_films.safetensors", "evaluation.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with pytest.raises(InvalidData, match="no folders"):
        fit(films, tmp_path / "nowhere", features, tmp_path / "c")
