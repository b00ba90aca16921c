"""Pulling models: the real client against a Hub on loopback that also fails, and no Hub at all."""

import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

import fracture_lib
from fracture_lib.errors import InvalidModel, ModelUnavailable
from fracture_lib.hub import BUNDLE, TIMEOUT, locate
from fracture_lib.registry import MODELS

ROOT = Path(__file__).parent.parent
NOWHERE = "http://127.0.0.1:9"  # the discard port: refused at once
VARIABLE = "FRACTURE_HUB_PYTORCH_CNN"


@pytest.fixture
def repo(request):
    """A Hub id of this test's own."""
    return "someone/" + re.sub(r"[^a-z0-9]+", "-", request.node.name)[-60:].strip("-")


@pytest.fixture
def sha(hub, repo):
    """Commit of the bundled pytorch-cnn under `repo`."""
    return hub.add(repo, BUNDLE / "pytorch-cnn")


def predict(film, model, **environment):
    """Start the command line on a film; see `said`."""
    return subprocess.Popen(
        [sys.executable, "-m", "fracture_lib", "predict", film, "--json", "--model", model],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def said(process):
    out, error = process.communicate()
    assert "Traceback" not in error
    return process.returncode, json.loads(out or "{}"), error


def blobs(repo):
    folder = Path(os.environ["HF_HOME"]) / "hub" / f"models--{repo.replace('/', '--')}"
    return {path.name: path.resolve() for path in folder.glob("snapshots/*/*")}


def test_a_hub_id_is_downloaded_and_named_with_its_commit(hub, repo, sha, film):
    prediction = fracture_lib.load(repo).predict(film)
    assert str(prediction.source) == f"Hugging Face Hub, {repo} at {sha[:12]}"
    assert prediction.scores == fracture_lib.load("pytorch-cnn").predict(film).scores
    assert {"model.onnx", "head.safetensors"} < blobs(repo).keys()
    assert "model.safetensors" not in blobs(repo), "what the runtime does not read stays away"
    assert fracture_lib.load(repo, "native").predict(film).runtime == "native"
    assert "model.safetensors" in blobs(repo)


def test_an_old_revision_can_be_asked_for(hub, repo, sha):
    newer = hub.add(repo, {"config.json": (BUNDLE / "pytorch-cnn" / "config.json").read_bytes() + b"\n"})
    assert locate(repo).revision == newer != sha == locate(f"{repo}@{sha}").revision
    with pytest.raises(ModelUnavailable, match="cannot get"):
        locate(f"{repo}@no-such-branch")


def test_a_pinned_revision_that_is_cached_asks_nobody(hub, repo, sha, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"{repo}@{sha}")
    first = locate("pytorch-cnn")
    hub.requests.clear()
    assert locate("pytorch-cnn") == first and hub.requests == []


def test_a_copy_that_is_cached_in_part_is_completed(hub, repo, sha):
    hf_hub_download(repo, "config.json", revision=sha)
    assert (locate(f"{repo}@{sha}").folder / "model.onnx").exists()


def test_a_private_repository_needs_a_token(hub, repo, monkeypatch):
    hub.add(repo, BUNDLE / "pytorch-cnn", private=True)
    with monkeypatch.context() as without:
        without.delenv("HF_TOKEN")
        with pytest.raises(ModelUnavailable, match="401"):
            locate(repo)
    assert locate(repo).kind == "hub"


@pytest.mark.parametrize(
    "fault",
    [
        {"cut": True},
        {"corrupt": True},
        {"status": 429, "headers": {"Retry-After": "1"}},
        {"seconds": 1.0},
    ],
    ids=lambda fault: next(iter(fault)),
)
def test_a_download_gets_over_a_fault(hub, repo, sha, film, fault):
    hub.fail("GET", "/resolve/.*model.onnx", **fault)
    assert fracture_lib.load(repo).predict(film).source.revision == sha


def test_what_never_matches_its_checksum_is_not_used(hub, repo, sha, monkeypatch):
    hub.fail("GET", "/resolve/.*model.onnx", corrupt=True, times=100)
    with pytest.raises(ModelUnavailable, match="checksum"):
        locate(repo)
    monkeypatch.setenv(VARIABLE, f"{repo}@{sha}")
    assert locate("pytorch-cnn").kind == "bundle"


@pytest.mark.parametrize(("where", "status"), [("/api/models/", 500), ("/resolve/", 403)])
def test_a_hub_that_refuses_falls_back_to_the_bundle(hub, repo, sha, monkeypatch, where, status):
    hub.fail("GET", where, status=status, times=100)
    hub.fail("HEAD", where, status=status, times=100)
    monkeypatch.setenv(VARIABLE, f"{repo}@{sha}")
    source = locate("pytorch-cnn")
    assert source.kind == "bundle" and f"cannot get {repo} from the Hub: " in str(source)
    hub.faults.clear()
    assert locate("pytorch-cnn").kind == "hub", "it is asked again"


def test_a_damaged_cache_is_mended(hub, repo, sha, film, monkeypatch):
    expected = fracture_lib.load(repo).predict(film)
    for name in ("model.onnx", "config.json"):
        path = blobs(repo)[name]
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert fracture_lib.load(repo).predict(film).scores == expected.scores
    blobs(repo)["model.onnx"].unlink()
    assert fracture_lib.load(repo).predict(film).scores == expected.scores
    path = blobs(repo)["model.onnx"]
    path.write_bytes(b"cut off")
    hub.fail("GET", ".", status=500, times=100)
    hub.fail("HEAD", ".", status=500, times=100)
    with pytest.raises(ModelUnavailable, match="damaged"):
        locate(repo)


def test_weights_that_can_run_code_are_not_downloaded(hub, repo):
    files = {p.name: p.read_bytes() for p in (BUNDLE / "pytorch-cnn").glob("*.json")}
    hub.add(repo, {**files, "pytorch_model.bin": b"\x80\x04cos\nsystem\n."})
    hub.requests.clear()
    with pytest.raises(InvalidModel, match=r"only as pytorch_model.bin, a format that can run code"):
        locate(repo)
    assert not [path for _, path in hub.requests if "/resolve/" in path]
    hub.add(repo, {"model.onnx": b"no graph"})
    with pytest.raises(InvalidModel):
        fracture_lib.load(repo)


def test_a_missing_repository_falls_back_by_name_and_is_an_error_by_id(hub, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"someone/else@{'0' * 40}")
    assert "someone/else" in str(locate("pytorch-cnn")) and locate("pytorch-cnn").kind == "bundle"
    with pytest.raises(ModelUnavailable, match="cannot get someone/else from the Hub"):
        locate("someone/else")


def test_a_configured_repository_must_pin_its_revision(monkeypatch):
    monkeypatch.setenv(VARIABLE, "someone/fracture-cnn")
    with pytest.raises(ModelUnavailable, match='write it as "owner/name@revision"'):
        locate("pytorch-cnn")


def test_a_hub_that_never_answers_is_waited_for_once(monkeypatch):
    """All three models together. A client's first question of the day waits as long beside ours."""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and says nothing
        monkeypatch.setattr(
            "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        for spec in MODELS.values():
            monkeypatch.setenv(spec.hub_variable, f"someone/silent@{'1' * 40}")
        start = time.monotonic()
        kinds = {locate(name).kind for name in MODELS}
        assert kinds == {"bundle"} and time.monotonic() - start < 3 * TIMEOUT


def test_a_connection_that_breaks_is_no_hub_out_of_reach_unless_it_breaks_twice(hub, repo, sha, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"{repo}@{sha}")
    hub.fail("GET", "/api/models/", close=True, times=2)
    assert locate("pytorch-cnn").kind == "bundle"
    assert locate("pytorch-cnn").kind == "bundle", "it now rests, and answers nobody's question"
    monkeypatch.setattr("fracture_lib.hub._silent", {})
    hub.fail("GET", "/api/models/", close=True)
    assert locate("pytorch-cnn").kind == "hub"


def test_without_a_hub_the_cache_or_the_bundle_serves_and_says_so(hub, repo, sha, film):
    locate(f"{repo}@{sha}")
    pinned = {VARIABLE: f"{repo}@{sha}", "HF_ENDPOINT": NOWHERE}
    other = {VARIABLE: f"someone/else@{sha}", "HF_ENDPOINT": NOWHERE}
    cached, bundled = [predict(film, "pytorch-cnn", **settings) for settings in (pinned, other)]
    code, answer, error = said(cached)
    assert code == 0 and answer["source"] == f"Hugging Face Hub, {repo} at {sha[:12]}", error
    code, answer, error = said(bundled)
    assert code == 0 and answer["source"].startswith("bundled with the app (cannot get someone/else "), error


def test_two_processes_may_download_at_once(hub, repo, sha, film, tmp_path):
    hub.fail("GET", "model.onnx", seconds=1, times=2)
    both = [predict(film, repo, HF_HOME=str(tmp_path)) for _ in range(2)]
    for code, answer, error in map(said, both):
        assert code == 0 and sha[:12] in answer["source"], error


def test_a_full_disk_is_one_sentence(hub, repo, sha, film, tmp_path):
    code = (
        "import resource, sys; from fracture_lib.__main__ import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, {resource.RLIM_INFINITY}))\n"
        f"sys.exit(main(['predict', {str(film)!r}, '--model', {repo!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"error: cannot get {repo} from the Hub: " in done.stderr and "File too large" in done.stderr
