"""Films for all tests: drawn, so the suite needs no radiograph and no network. And the running app."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hub_server import serve

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


def pytest_addoption(parser):
    parser.addoption("--screenshots", metavar="DIR", help="where the README's screenshots are written")
    parser.addoption("--fuzz", metavar="N", type=int, default=500, help="how many damaged files are read")


_until_the_end = ExitStack()
_started = {}


def pytest_configure(config):
    """Point every Hub client, here and in processes started from here, at a Hub of our own."""
    if "hub" not in _started:
        _started["hub"] = _until_the_end.enter_context(serve())
        os.environ |= {
            "HF_ENDPOINT": _started["hub"].address,
            "HF_HOME": _until_the_end.enter_context(tempfile.TemporaryDirectory()),
            "HF_TOKEN": _started["hub"].token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }


def pytest_unconfigure(config):
    _until_the_end.close()


@pytest.fixture
def hub(monkeypatch):
    """The Hub that all clients talk to, without faults at first. A slow machine is no silent Hub."""
    monkeypatch.setattr("fracture_lib.hub.TIMEOUT", 60)
    monkeypatch.setattr("fracture_lib.hub._silent", {})
    _started["hub"].faults.clear()
    yield _started["hub"]
    _started["hub"].faults.clear()


@contextmanager
def running_app(log, folder=Path(__file__).parent.parent, command=("app.py",), **environment):
    """URL of `python app.py`, in `folder`, whose log must hold no traceback at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as out:
        app = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            env={**os.environ, "GRADIO_SERVER_PORT": str(port), **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert app.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield url
    finally:
        app.terminate()
        app.wait()
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="session")
def address(tmp_path_factory):
    """URL of the page, for all tests that need no other."""
    with running_app(tmp_path_factory.mktemp("log") / "app.txt") as url:
        yield url
