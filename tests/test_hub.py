"""Names, Hub ids and the fall back to the bundle, with the real client against a loopback Hub."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import serve

from fracture_lib.hub import BUNDLE

ROOT = Path(__file__).parent.parent
REPO, SHA = "someone/fracture-cnn", "0123456789abcdef0123456789abcdef01234567"
NOWHERE = "http://127.0.0.1:9"  # the discard port: refused at once


@pytest.fixture
def hub(tmp_path):
    folder = shutil.copytree(BUNDLE / "pytorch-cnn", tmp_path / "repository")
    with serve(folder, REPO, SHA) as address:
        yield address


def predict(film, model, cache, endpoint, **environment):
    """Run the command line in a process of its own, as the client reads its settings once."""
    done = subprocess.run(
        [sys.executable, "-m", "fracture_lib", "predict", film, "--json", "--model", model],
        cwd=ROOT,
        env={**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


def test_a_hub_id_is_downloaded_and_named_with_its_commit(hub, film, tmp_path):
    code, answer, error = predict(film, REPO, tmp_path / "cache", hub)
    assert code == 0, error
    assert answer["source"] == f"Hugging Face Hub, {REPO} at {SHA[:12]}"
    downloaded = {p.name for p in (tmp_path / "cache").rglob("snapshots/*/*")}
    assert "model.onnx" in downloaded and "model.safetensors" not in downloaded


def test_a_name_goes_to_its_configured_repository(hub, film, tmp_path):
    pinned = {"FRACTURE_HUB_PYTORCH_CNN": f"{REPO}@{SHA}"}
    code, answer, error = predict(film, "pytorch-cnn", tmp_path / "cache", hub, **pinned)
    assert code == 0, error
    assert answer["source"].startswith("Hugging Face Hub")
    code, offline, error = predict(film, "pytorch-cnn", tmp_path / "cache", NOWHERE, **pinned)
    assert code == 0, error
    assert offline["source"] == answer["source"], "a pinned revision works from the cache"


def test_an_unreachable_hub_falls_back_to_the_bundle_and_says_so(film, tmp_path):
    pinned = {"FRACTURE_HUB_PYTORCH_CNN": f"{REPO}@{SHA}"}
    code, answer, error = predict(film, "pytorch-cnn", tmp_path / "cache", NOWHERE, **pinned)
    assert code == 0, error
    assert answer["source"].startswith(f"bundled with the app (cannot get {REPO} from the Hub: ")


def test_a_missing_repository_falls_back_by_name_and_is_an_error_by_id(hub, film, tmp_path):
    other = {"FRACTURE_HUB_PYTORCH_CNN": f"someone/else@{SHA}"}
    code, answer, _ = predict(film, "pytorch-cnn", tmp_path / "cache", hub, **other)
    assert code == 0 and "someone/else" in answer["source"]
    code, _, error = predict(film, "someone/else", tmp_path / "cache", hub)
    assert code == 1 and error.startswith("error: cannot get someone/else from the Hub")
    assert "Traceback" not in error


def test_a_configured_repository_must_pin_its_revision(film, tmp_path):
    code, _, error = predict(film, "pytorch-cnn", tmp_path / "cache", NOWHERE, FRACTURE_HUB_PYTORCH_CNN=REPO)
    assert code == 1 and 'write it as "owner/name@revision"' in error
