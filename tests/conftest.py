"""Fixtures for all tests: synthetic radiographs, a Hub on loopback, the running page. No network."""

import importlib
import os
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
import pytest

from fracture_lib import CLASSES, preprocess
from fracture_lib.data.synthetic import synthetic_radiograph
from tests.helpers.app_runner import running_app
from tests.helpers.hub_server import serve

with suppress(ImportError):  # as in fracture_lib.models.keras_networks, before any test imports TensorFlow
    importlib.import_module("triton")


@pytest.fixture(scope="session")
def image_path(tmp_path_factory) -> Path:
    """One synthetic radiograph, spiral.png."""
    path = tmp_path_factory.mktemp("image") / "spiral.png"
    synthetic_radiograph("Spiral").save(path)
    return path


@pytest.fixture(scope="session")
def dataset_folder(tmp_path_factory) -> Path:
    """A folder <class>/Train/*.png with four synthetic radiographs per class and a manifest of groups."""
    root = tmp_path_factory.mktemp("dataset")
    rows = ["path,label,source_group"]
    for c in CLASSES:
        folder = root / f"{c.label} fracture" / "Train"
        folder.mkdir(parents=True)
        for seed in range(4):
            synthetic_radiograph(c.label, seed, width=64, height=96).save(folder / f"{seed}.png")
            rows.append(f"{c.label} fracture/Train/{seed}.png,{c.label},{c.id * 4 + seed}")
    (root / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def fracatlas_folder(tmp_path_factory) -> Path:
    """A folder laid out like FracAtlas: 24 synthetic radiographs, a third with a fracture, and a manifest."""
    root = tmp_path_factory.mktemp("fracatlas")
    (root / "images").mkdir()
    rows = ["path,label,region,view,boxes,source_group"]
    for i in range(24):
        is_fractured = i % 3 == 0
        image = synthetic_radiograph("Oblique" if is_fractured else "Impacted", i, width=64, height=96)
        image.save(root / "images" / f"{i}.png")
        label, boxes = ("fractured", '"[[0.2, 0.4, 0.8, 0.6]]"') if is_fractured else ("not fractured", "[]")
        region, view = ("hand", "frontal+lateral") if i % 2 else ("leg", "frontal")
        rows.append(f"images/{i}.png,{label},{region},{view},{boxes},{i // 2}")
    (root / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def pixels() -> np.ndarray:
    """Model input of one synthetic radiograph per class: float32 [10, V, 128, 128]."""
    return np.stack([preprocess(synthetic_radiograph(c.label)) for c in CLASSES])


@pytest.fixture(scope="session")
def single_views(pixels) -> np.ndarray:
    """The first view of each image in `pixels`, as a network takes it: float32 [10, 1, 128, 128]."""
    return pixels[:, :1]


def pytest_addoption(parser):
    parser.addoption("--screenshots", metavar="DIR", help="folder for the README's screenshots")
    parser.addoption("--fuzz", metavar="N", type=int, default=500, help="number of damaged files to read")


_resources = ExitStack()
_started = {}


def pytest_configure(config):
    """Point every Hub client, in this process and its children, at a Hub on loopback."""
    if "hub" not in _started:
        _started["hub"] = _resources.enter_context(serve())
        os.environ |= {
            "HF_ENDPOINT": _started["hub"].address,
            "HF_HOME": _resources.enter_context(tempfile.TemporaryDirectory()),
            "HF_TOKEN": _started["hub"].token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }


def pytest_unconfigure(config):
    _resources.close()


@pytest.fixture
def hub(monkeypatch):
    """The Hub on loopback, without injected faults at first."""
    monkeypatch.setattr("fracture_lib.hub.TIMEOUT", 60)  # a slow machine is not an unreachable Hub
    monkeypatch.setattr("fracture_lib.hub._last_failures", {})
    _started["hub"].faults.clear()
    yield _started["hub"]
    _started["hub"].faults.clear()


@pytest.fixture(scope="session")
def app_url(tmp_path_factory):
    """The URL of the page, shared by all tests that need no special start."""
    with running_app(tmp_path_factory.mktemp("log") / "app.txt") as url:
        yield url
