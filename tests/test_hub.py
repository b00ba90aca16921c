"""Resolve and download models: the real client, a Hub on loopback that fails on demand, and no Hub at all."""

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
from fracture_lib.errors import FractureError, InvalidModel, ModelUnavailable, UnknownModel
from fracture_lib.hub import BUNDLE, MODEL_FILES, TIMEOUT, resolve_model, resolve_pretrained
from fracture_lib.registry import MODELS

ROOT = Path(__file__).parent.parent
UNREACHABLE = "http://127.0.0.1:9"  # the discard port, which refuses at once
VARIABLE = "FRACTURE_HUB_PYTORCH_CNN"


@pytest.fixture
def repo(request):
    """A repository of this test's own."""
    return "someone/" + re.sub(r"[^a-z0-9]+", "-", request.node.name)[-60:].strip("-")


@pytest.fixture
def reference(repo):
    return f"hf-hub:{repo}"


@pytest.fixture
def sha(hub, repo):
    """The commit of the bundled pytorch-cnn in `repo`."""
    return hub.add(repo, BUNDLE / "pytorch-cnn")


def start_predict(image_path, model, **environment):
    """Start the command line on one image; `wait_for_answer` returns its outcome."""
    return subprocess.Popen(
        [sys.executable, "-m", "fracture_lib", "predict", image_path, "--json", "--model", model],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_answer(process):
    """Return (exit code, source of the weights, stderr)."""
    out, error = process.communicate()
    assert "Traceback" not in error
    sources = [prediction["source"] for prediction in json.loads(out)["predictions"]] if out else [""]
    return process.returncode, sources[0], error


def cached_files(repo):
    """Return {name: path of the blob} of a repository in the client's cache."""
    folder = Path(os.environ["HF_HOME"]) / "hub" / f"models--{repo.replace('/', '--')}"
    return {path.name: path.resolve() for path in folder.glob("snapshots/*/*")}


# References


def test_resolve_model_with_a_name_returns_the_bundle():
    source = resolve_model("resnet50")
    assert (source.kind, source.folder, str(source)) == ("bundle", BUNDLE / "resnet50", "bundled weights")


@pytest.mark.parametrize("form", [str, Path], ids=["local-dir", "Path"])
def test_resolve_model_with_a_local_folder_returns_it(form):
    folder = BUNDLE / "pytorch-cnn"
    source = resolve_model(folder if form is Path else f"local-dir:{folder}")
    assert (source.kind, source.folder, str(source)) == ("local", folder, "local folder pytorch-cnn")


@pytest.mark.parametrize("reference", ["local-dir:no/such/folder", Path("no/such/folder")])
def test_resolve_model_with_a_missing_folder_raises_model_unavailable(reference):
    with pytest.raises(ModelUnavailable, match=r"There is no model folder no.such.folder\. Check the path"):
        resolve_model(reference)


@pytest.mark.parametrize(
    "reference",
    ["trained/pytorch-cnn", "./trained/pytorch-cnn", "owner/name@main", "/no/such/folder", "vgg", ""],
)
def test_resolve_model_with_a_mistyped_path_or_name_never_asks_the_hub(hub, reference):
    hub.requests.clear()
    with pytest.raises(UnknownModel) as raised:
        resolve_model(reference)
    assert hub.requests == []
    message = str(raised.value)
    assert message.startswith(f'Unknown model "{reference}".')
    assert all(
        choice in message for choice in (*MODELS, "ensemble", '"local-dir:path"', '"hf-hub:owner/name"')
    )


@pytest.mark.parametrize(
    ("reference", "nearest"),
    [("resnet", "resnet50"), ("pytorch_cnn", "pytorch-cnn"), ("Ensemble", "ensemble")],
)
def test_resolve_model_with_a_similar_name_suggests_the_nearest(reference, nearest):
    with pytest.raises(UnknownModel, match=f'Unknown model "{reference}". Did you mean "{nearest}"?'):
        resolve_model(reference)


@pytest.mark.parametrize(
    "reference",
    ["hf-hub:", "hf-hub:name", "hf-hub:a/b/c", "hf-hub:../name/x@main", "hf-hub:-a/b", "hf-hub:a/.."],
)
def test_resolve_model_with_a_malformed_repository_raises_unknown_model(hub, reference):
    hub.requests.clear()
    with pytest.raises(UnknownModel, match="not a Hub repository"):
        resolve_model(reference)
    assert hub.requests == []


def test_unknown_model_is_a_value_error_and_model_unavailable_an_os_error():
    assert issubclass(UnknownModel, FractureError) and issubclass(UnknownModel, ValueError)
    assert issubclass(ModelUnavailable, FractureError) and issubclass(ModelUnavailable, OSError)
    with pytest.raises(ValueError):
        fracture_lib.load_model("vgg")


# Downloads


@pytest.mark.slow
def test_load_model_with_a_hub_reference_downloads_what_the_runtime_needs(
    hub, repo, reference, sha, image_path
):
    prediction = fracture_lib.load_model(reference).predict(image_path)
    assert str(prediction.source) == f"Hugging Face Hub, {repo} at {sha[:12]}"
    assert prediction.scores == fracture_lib.load_model("pytorch-cnn").predict(image_path).scores
    assert {"model.onnx", "head.safetensors"} < cached_files(repo).keys()
    assert "model.safetensors" not in cached_files(repo)
    assert fracture_lib.load_model(reference, "native").predict(image_path).runtime == "native"
    assert "model.safetensors" in cached_files(repo)
    assert cached_files(repo).keys() <= set(MODEL_FILES)


def test_resolve_model_with_a_revision_returns_that_commit(hub, repo, reference, sha):
    config = (BUNDLE / "pytorch-cnn" / "config.json").read_bytes()
    newer = hub.add(repo, {"config.json": config + b"\n"})
    assert resolve_model(reference).revision == newer
    assert resolve_model(f"{reference}@{sha}").revision == sha != newer
    with pytest.raises(ModelUnavailable, match=f"Cannot download {repo} from the Hub"):
        resolve_model(f"{reference}@no-such-branch")


def test_resolve_model_with_a_cached_pinned_revision_sends_no_request(hub, repo, sha, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"{repo}@{sha}")
    first = resolve_model("pytorch-cnn")
    hub.requests.clear()
    assert resolve_model("pytorch-cnn") == first and hub.requests == []


def test_resolve_model_with_an_incomplete_cached_copy_downloads_the_rest(hub, repo, reference, sha):
    hf_hub_download(repo, "config.json", revision=sha)
    assert (resolve_model(f"{reference}@{sha}").folder / "model.onnx").exists()


def test_resolve_model_with_a_private_repository_needs_a_token(hub, repo, reference, monkeypatch):
    hub.add(repo, BUNDLE / "pytorch-cnn", private=True)
    with monkeypatch.context() as without_token:
        without_token.delenv("HF_TOKEN")
        with pytest.raises(ModelUnavailable, match="401"):
            resolve_model(reference)
    assert resolve_model(reference).kind == "hub"


def test_resolve_model_with_pickled_weights_only_downloads_nothing(hub, repo, reference):
    files = {path.name: path.read_bytes() for path in (BUNDLE / "pytorch-cnn").glob("*.json")}
    hub.add(repo, {**files, "pytorch_model.bin": b"\x80\x04cos\nsystem\n."})
    hub.requests.clear()
    with pytest.raises(InvalidModel, match=r"only as pytorch_model.bin, a format that can run code"):
        resolve_model(reference)
    assert not [path for _, path in hub.requests if "/resolve/" in path]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model.onnx": b"not a graph"}, "has no config.json; it is not a model of this library"),
        ({"config.json": b"{}"}, "has no model.onnx; it is not a model of this library"),
    ],
    ids=["no-config", "no-weights"],
)
def test_resolve_model_with_another_kind_of_repository_raises_invalid_model(
    hub, repo, reference, files, message
):
    hub.add(repo, files)
    with pytest.raises(InvalidModel, match=f"{repo} {message}"):
        resolve_model(reference)


def test_resolve_pretrained_with_a_file_returns_it_and_with_a_hub_reference_downloads_it(
    hub, repo, reference, sha
):
    path = BUNDLE / "pytorch-cnn" / "model.safetensors"
    assert resolve_pretrained(path) == resolve_pretrained(str(path)) == path
    assert resolve_pretrained(f"{reference}@{sha}").read_bytes() == path.read_bytes()


def test_resolve_pretrained_without_a_hub_fails_at_once_or_uses_the_cache(hub, reference, sha, monkeypatch):
    path = resolve_pretrained(f"{reference}@{sha}")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", UNREACHABLE)
    start = time.monotonic()
    assert resolve_pretrained(f"{reference}@{sha}") == path
    with pytest.raises(ModelUnavailable, match=r"Cannot download the pretrained weights someone/else"):
        resolve_pretrained("hf-hub:someone/else")
    assert time.monotonic() - start < 5, "the client alone repeats its requests for half a minute"


@pytest.mark.parametrize("mistyped", ["weights.safetensors", "owner/name", "hf-hub:name"])
def test_resolve_pretrained_with_anything_else_never_asks_the_hub(hub, mistyped):
    hub.requests.clear()
    with pytest.raises(
        ModelUnavailable, match=f'There is no file {mistyped}. Give a safetensors file or "hf-'
    ):
        resolve_pretrained(mistyped)
    assert hub.requests == []


# Faults


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
def test_download_with_a_passing_fault_succeeds(hub, repo, reference, sha, image_path, fault):
    hub.fail("GET", "/resolve/.*model.onnx", **fault)
    assert fracture_lib.load_model(reference).predict(image_path).source.revision == sha


def test_download_that_never_matches_its_checksum_is_not_used(hub, repo, reference, sha, monkeypatch):
    hub.fail("GET", "/resolve/.*model.onnx", corrupt=True, times=100)
    with pytest.raises(ModelUnavailable, match="checksum"):
        resolve_model(reference)
    monkeypatch.setenv(VARIABLE, f"{repo}@{sha}")
    assert resolve_model("pytorch-cnn").kind == "bundle"


@pytest.mark.parametrize(("path", "status"), [("/api/models/", 500), ("/resolve/", 403)])
def test_name_with_a_hub_that_rejects_requests_falls_back_to_the_bundle(
    hub, repo, sha, monkeypatch, path, status
):
    hub.fail("GET", path, status=status, times=100)
    hub.fail("HEAD", path, status=status, times=100)
    monkeypatch.setenv(VARIABLE, f"{repo}@{sha}")
    source = resolve_model("pytorch-cnn")
    assert source.kind == "bundle"
    assert str(source).startswith(f"bundled weights (Cannot download {repo} from the Hub: ")
    hub.faults.clear()
    assert resolve_model("pytorch-cnn").kind == "hub"  # the next call tries again


def test_missing_repository_falls_back_by_name_and_fails_by_reference(hub, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"someone/else@{'0' * 40}")
    source = resolve_model("pytorch-cnn")
    assert source.kind == "bundle" and "someone/else" in str(source)
    with pytest.raises(ModelUnavailable, match="Cannot download someone/else from the Hub"):
        resolve_model("hf-hub:someone/else")


@pytest.mark.parametrize("configured", ["someone/fracture-cnn", "fracture-cnn@main"])
def test_configured_repository_without_owner_or_revision_raises_model_unavailable(monkeypatch, configured):
    monkeypatch.setenv(VARIABLE, configured)
    with pytest.raises(
        ModelUnavailable, match=f'{VARIABLE} is "{configured}". Write it as "owner/name@revision"'
    ):
        resolve_model("pytorch-cnn")


def test_damaged_cached_copy_is_downloaded_again(hub, repo, reference, sha, image_path):
    expected = fracture_lib.load_model(reference).predict(image_path)
    for name in ("model.onnx", "config.json"):
        path = cached_files(repo)[name]
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert fracture_lib.load_model(reference).predict(image_path).scores == expected.scores
    cached_files(repo)["model.onnx"].unlink()
    assert fracture_lib.load_model(reference).predict(image_path).scores == expected.scores


def test_damaged_cached_copy_without_a_hub_raises_model_unavailable(hub, repo, reference, sha):
    resolve_model(f"{reference}@{sha}")
    cached_files(repo)["model.onnx"].write_bytes(b"cut off")
    hub.fail("GET", ".", status=403, times=100)
    hub.fail("HEAD", ".", status=403, times=100)
    with pytest.raises(ModelUnavailable, match=f"cached copy of {repo} is damaged and cannot be downloaded"):
        resolve_model(f"{reference}@{sha}")


@pytest.mark.slow
def test_hub_that_never_responds_is_waited_for_once_by_all_models(monkeypatch):
    # The client's first request of a day to an address waits as long beside ours.
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections and sends nothing
        monkeypatch.setattr(
            "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        for spec in MODELS.values():
            monkeypatch.setenv(spec.hub_variable, f"someone/silent@{'1' * 40}")
        start = time.monotonic()
        kinds = {resolve_model(name).kind for name in MODELS}
        assert kinds == {"bundle"} and time.monotonic() - start < 3 * TIMEOUT


def test_broken_connection_counts_as_an_unreachable_hub_only_if_it_breaks_twice(hub, repo, sha, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"{repo}@{sha}")
    hub.fail("GET", "/api/models/", close=True, times=2)
    assert resolve_model("pytorch-cnn").kind == "bundle"
    hub.requests.clear()
    assert resolve_model("pytorch-cnn").kind == "bundle" and hub.requests == []  # not tried for a while
    monkeypatch.setattr("fracture_lib.hub._last_failures", {})
    hub.fail("GET", "/api/models/", close=True)
    assert resolve_model("pytorch-cnn").kind == "hub"


@pytest.mark.slow
def test_predict_without_a_hub_uses_the_cache_or_the_bundle_and_names_its_source(
    hub, repo, reference, sha, image_path
):
    resolve_model(f"{reference}@{sha}")
    cached = start_predict(image_path, "pytorch-cnn", HF_ENDPOINT=UNREACHABLE, **{VARIABLE: f"{repo}@{sha}"})
    bundled = start_predict(
        image_path, "pytorch-cnn", HF_ENDPOINT=UNREACHABLE, **{VARIABLE: f"someone/else@{sha}"}
    )
    code, source, error = wait_for_answer(cached)
    assert code == 0 and source == f"Hugging Face Hub, {repo} at {sha[:12]}", error
    code, source, error = wait_for_answer(bundled)
    assert code == 0 and source.startswith("bundled weights (Cannot download someone/else "), error


@pytest.mark.slow
def test_two_processes_can_download_at_once(hub, reference, sha, image_path, tmp_path):
    hub.fail("GET", "model.onnx", seconds=1, times=2)
    processes = [start_predict(image_path, reference, HF_HOME=str(tmp_path)) for _ in range(2)]
    for code, source, error in map(wait_for_answer, processes):
        assert code == 0 and sha[:12] in source, error


def test_download_with_a_full_disk_is_one_error_line(hub, repo, reference, sha, image_path, tmp_path):
    code = (
        "import resource, sys; from fracture_lib.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, {resource.RLIM_INFINITY}))\n"
        f"sys.exit(main(['predict', {str(image_path)!r}, '--model', {reference!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"error: Cannot download {repo} from the Hub: " in done.stderr and "File too large" in done.stderr
