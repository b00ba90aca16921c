"""Films for all tests: drawn, so the suite needs no radiograph and no network."""

import numpy as np
import pytest

from fracture_lib.drawing import draw_film
from fracture_lib.labels import CLASSES


@pytest.fixture(scope="session")
def film(tmp_path_factory):
    """Path of one drawn film, PNG."""
    path = tmp_path_factory.mktemp("film") / "spiral.png"
    draw_film("Spiral").save(path)
    return path


@pytest.fixture(scope="session")
def film_folder(tmp_path_factory):
    """Path of <class>/Train/*.png with four drawn films a class and a manifest of groups."""
    root = tmp_path_factory.mktemp("films")
    rows = ["path,label,source_group"]
    for c in CLASSES:
        folder = root / f"{c.label} fracture" / "Train"
        folder.mkdir(parents=True)
        for seed in range(4):
            draw_film(c.label, seed, width=64, height=96).save(folder / f"{seed}.png")
            rows.append(f"{c.label} fracture/Train/{seed}.png,{c.label},{c.id * 4 + seed}")
    (root / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def pixels():
    """Model input of one drawn film a class: float32 [10, 1, 128, 128]."""
    from fracture_lib import preprocess

    return np.stack([preprocess(draw_film(c.label)) for c in CLASSES])[:, None]
