"""Faults from outside: damaged models, a full disk, no memory, a kill. One sentence each, nothing lost.

What belongs to one module is beside its other tests: a Hub that fails in test_hub, a push in test_publish.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import onnx
import pytest
from bad_images import saved
from conftest import running_app
from onnx import numpy_helper
from PIL import Image
from safetensors.numpy import load_file, save_file
from test_server import App, call, files, part, upload, uploaded

import fracture_lib
from fracture_lib import InvalidModel
from fracture_lib.__main__ import main
from fracture_lib.hub import BUNDLE
from fracture_lib.page import many_films
from fracture_lib.panel import EVERYONE, Panel
from fracture_lib.recipes import RECIPES
from fracture_lib.refusal import _known
from fracture_lib.registry import MODELS

ROOT = Path(__file__).parent.parent

# ---- damaged models


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A copy of the bundle, to be damaged, from which all names are now served."""
    for module in ("hub", "classifier", "panel"):
        monkeypatch.setattr(f"fracture_lib.{module}.BUNDLE", tmp_path)
    shutil.copytree(BUNDLE, tmp_path, dirs_exist_ok=True, copy_function=lambda a, b: Path(b).symlink_to(a))
    return tmp_path


def write(path, data):
    path.unlink()  # the link, not the bundle's own
    path.write_bytes(data)


def edit(path, **entries):
    """Change entries of a JSON file; None takes one away."""
    content = json.loads(path.read_text()) | entries
    write(path, json.dumps({k: v for k, v in content.items() if v is not None}).encode())


def nan_weights(folder):
    graph = onnx.load(folder / "model.onnx")
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            nan = np.full_like(numpy_helper.to_array(tensor), np.nan)
            tensor.CopyFrom(numpy_helper.from_array(nan, tensor.name))
    write(folder / "model.onnx", graph.SerializeToString())


def no_feature_map(folder):
    graph = onnx.load(folder / "model.onnx")
    graph.graph.output.pop()
    write(folder / "model.onnx", graph.SerializeToString())


def nine_logits(folder):
    """A head and a graph that agree, on one class too few."""
    graph = onnx.load(folder / "model.onnx")
    head = load_file(folder / "head.safetensors")
    wanted = {head["logits_kernel"].shape[::-1], head["logits_bias"].shape}
    for tensor in graph.graph.initializer:
        if tuple(tensor.dims) in wanted:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:9], tensor.name))
    for output in graph.graph.output:
        if output.name == "logits":
            output.type.tensor_type.shape.dim[1].dim_value = 9
    write(folder / "model.onnx", graph.SerializeToString())
    head |= {"logits_kernel": head["logits_kernel"][:, :9], "logits_bias": head["logits_bias"][:9]}
    write(folder / "head.safetensors", b"")
    save_file({k: np.ascontiguousarray(v) for k, v in head.items()}, folder / "head.safetensors")


def from_another(name, model):
    def swap(folder):
        write(folder / name, (BUNDLE / model / name).read_bytes())

    return swap


def cut(name, size):
    return lambda folder: write(folder / name, (BUNDLE / folder.name / name).read_bytes()[:size])


DAMAGES = {
    "graph empty": (cut("model.onnx", 0), r"model\.onnx cannot be read"),
    "graph cut": (cut("model.onnx", 700_000), r"model\.onnx cannot be read"),
    "graph of another architecture": (from_another("model.onnx", "resnet50"), "is no whole model|not of one"),
    "graph of another model": (from_another("model.onnx", "tensorflow-cnn"), "not of one model"),
    "graph without feature map": (no_feature_map, "is no whole model"),
    "graph of NaN": (nan_weights, "not of one model"),
    "nine logits": (nine_logits, "not of one model"),
    "head empty": (cut("head.safetensors", 0), r"no readable head\.safetensors"),
    "head cut": (cut("head.safetensors", 5000), r"no readable head\.safetensors"),
    "head of another model": (from_another("head.safetensors", "tensorflow-cnn"), "not of one model"),
    "head of another architecture": (from_another("head.safetensors", "resnet50"), "is no whole model"),
    "config empty": (cut("config.json", 0), r"config\.json cannot be read"),
    "config no object": (lambda f: write(f / "config.json", b"[1]"), "holds no JSON object"),
    "config without temperature": (lambda f: edit(f / "config.json", temperature=None), "lacks temperature"),
    "config of ice": (lambda f: edit(f / "config.json", temperature=0), "the temperature 0"),
    "config with classes in a list": (lambda f: edit(f / "config.json", id2label=["Spiral"]), "id2label"),
    "evaluation missing": (lambda f: (f / "evaluation.json").unlink(), r"has no evaluation\.json"),
    "evaluation cut": (cut("evaluation.json", 3000), r"evaluation\.json cannot be read"),
    "evaluation empty": (lambda f: write(f / "evaluation.json", b"{}"), "lacks model, protocol"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_says_so_when_it_is_loaded(bundle, damage):
    spoil, words = DAMAGES[damage]
    spoil(bundle / "pytorch-cnn")
    with pytest.raises(InvalidModel, match=words):
        fracture_lib.load("pytorch-cnn")
    assert fracture_lib.load("tensorflow-cnn").name == "tensorflow-cnn"


@pytest.mark.parametrize(
    ("damaged", "answering"),
    [
        ("resnet50/model.onnx", ["pytorch-cnn", "tensorflow-cnn"]),
        ("refusal/known_films.safetensors", EVERYONE),
    ],
    ids=["gatekeeper", "known films"],
)
def test_where_nothing_can_check_what_is_an_x_ray_the_models_answer_and_it_is_said(
    bundle, film, monkeypatch, damaged, answering
):
    monkeypatch.setattr("fracture_lib.refusal.FOLDER", bundle / "refusal")
    _known.cache_clear()
    write(bundle / damaged, (BUNDLE / damaged).read_bytes()[:300_000])
    panel = Panel()
    result = panel.ask(film)
    assert list(result.predictions) == list(answering) and not result.verdict.refused
    [notice] = result.notices
    assert notice.startswith("Nothing checked whether this is an X-ray: ")
    assert notice in result.to_dict(3)["notices"]
    monkeypatch.undo()
    assert not panel.ask(film).notices, "it is looked for again"


def test_an_ensemble_whose_weights_are_damaged_leaves_its_members_answering(bundle, film):
    cut("evaluation.json", 3000)(bundle / "ensemble")
    result = Panel().ask(film)
    assert list(result.predictions) == list(MODELS) and "cannot be read" in result.failures["ensemble"]


# ---- memory


def test_a_film_that_memory_is_too_small_for_is_one_sentence_and_the_next_is_answered(film):
    """A process with room for forty megabytes more, and a film of 20 million pixels."""
    code = f"""
import io, resource
import numpy as np
from PIL import Image
from fracture_lib import InvalidImage
from fracture_lib.panel import Panel
panel, large = Panel(), io.BytesIO()
Image.fromarray(np.tile(np.arange(250, dtype=np.uint8), (4000, 20))).save(large, "PNG", compress_level=1)
panel.ask({str(film)!r}, ["pytorch-cnn"])
now = 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1])
resource.setrlimit(resource.RLIMIT_AS, (now + 40_000_000, resource.RLIM_INFINITY))
for _ in range(2):
    try:
        panel.ask(large.getvalue(), ["pytorch-cnn"], name="large")
    except InvalidImage as error:
        print(error)
    print(*panel.ask({str(film)!r}, ["pytorch-cnn"]).predictions)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    said = "The film needs more memory than there is: scale it down first."
    assert done.stdout.splitlines() == [said, "pytorch-cnn"] * 2, done.stderr


# ---- a full disk


@contextmanager
def room(size):
    """Let no file of this process grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Learner:
    """The least that `fracture_lib.training` asks of a backend: one layer on eight pixels."""

    def __init__(self, recipe, seed, pretrained):
        self.weights = [np.zeros((8, 10), np.float32)]

    def features(self, pixels):
        return pixels

    def step(self, features, targets, learning_rate, seed):
        self.weights = [self.weights[0] + learning_rate * self._eight(features).T @ targets]
        return 0.0

    def logits(self, features):
        return self._eight(features) @ self.weights[0]

    def _eight(self, features):
        return features.reshape(len(features), -1)[:, 64 :: 128 * 16]

    def get_weights(self):
        return self.weights

    def set_weights(self, arrays):
        self.weights = arrays

    def get_optimizer(self):
        return [np.zeros(100_000, np.float32)]  # larger than the room that there is

    def set_optimizer(self, arrays):
        pass

    def save(self, folder):
        for path in (BUNDLE / "pytorch-cnn").iterdir():
            if path.name in ("model.onnx", "model.safetensors", "head.safetensors"):
                shutil.copy(path, folder)


@pytest.mark.parametrize(
    ("views", "size"), [(0, 50_000), (3, 500)], ids=["checkpoint", "features of the frozen trunk"]
)
def test_training_on_a_full_disk_is_one_sentence_and_goes_on_when_there_is_room(
    film_folder, tmp_path, monkeypatch, capsys, views, size
):
    monkeypatch.setattr("fracture_lib.training.import_module", lambda _: SimpleNamespace(Learner=Learner))
    monkeypatch.setitem(RECIPES, "pytorch-cnn", replace(RECIPES["pytorch-cnn"], cached_views=views))
    arguments = ["train", "--model", "pytorch-cnn", "--data", str(film_folder), "--out", str(tmp_path)]
    arguments += ["--folds", "2", "--held-out", "1", "--epochs", "1"]
    with room(size):
        assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "error: " in error and "File too large" in error and "Traceback" not in error
    assert main(arguments) == 0
    assert fracture_lib.load(tmp_path).evaluation["n"] == 20


def test_a_push_from_a_full_disk_changes_nothing_and_goes_through_when_there_is_room(hub, capsys):
    repo = "someone/full-disk"
    hub.add(repo, BUNDLE / "pytorch-cnn")
    before = hub.files(repo)
    with room(1000):
        assert main(["push", "--model", "pytorch-cnn", "--repo", repo]) == 1
    assert f"error: cannot see what {repo} holds now: " in capsys.readouterr().err
    assert hub.files(repo) == before
    assert main(["push", "--model", "pytorch-cnn", "--repo", repo]) == 0


@pytest.fixture
def name_them_all():
    """What the tab for many films does when it is told to."""
    with gr.Blocks() as page:
        many_films.build(Panel())
    [run] = [f.fn for f in page.fns.values() if f.name == "run"]
    return run


def test_a_batch_whose_films_were_deleted_meanwhile_says_so(name_them_all, film, tmp_path):
    [(told, table, *_)] = name_them_all([str(film), str(tmp_path / "gone.png")], False)
    assert "give it again" in told and not table


def test_a_batch_on_a_full_disk_is_answered_without_files_to_download(name_them_all, film):
    with room(500):
        *_, (told, table, *downloads) = name_them_all([str(film)], False)
    assert "no room for the files" in told and film.name in table
    assert [button["visible"] for button in downloads] == [False, False]


# ---- a server in need


@contextmanager
def running_server(folder):
    """(App, its process's number) of a page of its own that keeps its uploads below `folder`."""
    told = folder.parent / "pid.txt"
    start = f"import app, os, pathlib; pathlib.Path({str(told)!r}).write_text(str(os.getpid()))"
    start += "; app.main(app.Panel())"
    log = folder.parent / "log.txt"
    with running_app(log, command=["-c", start], GRADIO_TEMP_DIR=str(folder)) as url:
        yield App(url, log, folder, None), int(told.read_text())


@contextmanager
def limit(pid, which, most):
    """Lower a limit of another process for a while."""
    before = resource.prlimit(pid, which)
    resource.prlimit(pid, which, (most, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, which, before)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server") / "uploads"
    folder.mkdir()
    with running_server(folder) as started:
        yield started


def ask(app, sent, verb="compare"):
    return call(app, verb, [sent, 3, False])


def test_a_page_with_too_little_memory_for_a_huge_film_says_so_and_answers_the_next(server, film):
    app, pid = server
    large = saved(Image.fromarray(np.tile(np.arange(250, dtype=np.uint8), (6000, 24))), compress_level=0)
    assert ask(app, uploaded(app, "film.png", film.read_bytes()))[0] == "complete"
    status = Path(f"/proc/{pid}/status").read_text()
    now = 1024 * int(status.split("VmSize:")[1].split()[0])
    with limit(pid, resource.RLIMIT_AS, now + 100_000_000):
        for _ in range(2):
            event, told = ask(app, uploaded(app, "large.png", large))
            assert event == "error" and "needs more memory than there is" in told["error"]
            assert ask(app, uploaded(app, "film.png", film.read_bytes()))[0] == "complete"


def test_an_upload_to_a_full_disk_is_one_sentence_and_the_next_arrives(server, film):
    app, pid = server
    before = files(app)
    with limit(pid, resource.RLIMIT_FSIZE, 500):
        status, told = upload(app, part("film.png", os.urandom(3_000_000)))
    assert status == 507 and "no room for uploads now" in told
    # What there was room for is swept later, as Gradio deletes it for its own errors alone.
    assert before <= files(app) and sum(path.stat().st_size for path in files(app) - before) <= 500
    assert ask(app, uploaded(app, "film.png", film.read_bytes()))[0] == "complete"


def test_a_server_killed_in_mid_batch_harms_no_other_and_leaves_no_film(tmp_path, film):
    """Two on one folder; the one that is started next deletes what the killed one could not."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    with (
        running_server(folder) as (one, pid),
        running_app(tmp_path / "two.txt", GRADIO_TEMP_DIR=str(folder)) as url,
    ):
        two = App(url, None, folder, None)
        kept = uploaded(two, "film.png", film.read_bytes())
        batch = [uploaded(one, f"{i}.png", film.read_bytes()) for i in range(200)]
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(ask, one, batch, "predict_batch")
            time.sleep(1)
            assert not answer.done()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises((HTTPException, OSError)):
                answer.result()
        assert ask(two, kept)[0] == "complete"
        assert Path(batch[0]["path"]).exists()
        with running_app(tmp_path / "three.txt", GRADIO_TEMP_DIR=str(folder)):
            assert not Path(batch[0]["path"]).exists()
        assert ask(two, kept)[0] == "complete"


def test_a_page_stopped_while_it_still_starts_leaves_no_folder_and_no_traceback(tmp_path):
    """It answers before Gradio has launched it; `running_app` looks for the traceback."""
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    with running_app(tmp_path / "log.txt", GRADIO_TEMP_DIR=str(uploads)):
        pass
    assert not list(uploads.glob("uploads-*"))


# ---- a kill


def command(*arguments, **environment):
    """Start the command line."""
    return subprocess.Popen(
        [sys.executable, "-m", "fracture_lib", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_when(process, condition):
    """SIGKILL a process as soon as `condition()` holds."""
    while not condition():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.kill()
    process.communicate()


def test_a_push_killed_in_mid_upload_leaves_the_repository_as_it_was_and_the_next_goes_through(hub):
    repo = "someone/killed-push"
    hub.add(repo, {"config.json": b"{}"})
    before = hub.files(repo)
    hub.uploads.clear()
    hub.requests.clear()
    hub.fail("PUT", "/lfs/", seconds=5)
    push = ("push", "--model", "pytorch-cnn", "--repo", repo)
    kill_when(command(*push), lambda: any(method == "PUT" for method, _ in hub.requests))
    assert hub.files(repo) == before
    assert main(list(push)) == 0
    assert hub.files(repo)["model.onnx"] == (BUNDLE / "pytorch-cnn" / "model.onnx").read_bytes()


def test_a_download_killed_half_way_leaves_nothing_in_the_way_of_the_next(hub, film, tmp_path):
    repo = "someone/killed-download"
    sha = hub.add(repo, BUNDLE / "pytorch-cnn")
    hub.requests.clear()
    hub.fail("GET", "/resolve/.*model.onnx", stall=60)
    ask = ("predict", film, "--json", "--model", repo)

    def half_there():
        asked = any(method == "GET" and path.endswith("model.onnx") for method, path in hub.requests)
        return asked and any(tmp_path.rglob("*.incomplete"))

    kill_when(command(*ask, HF_HOME=str(tmp_path)), half_there)
    out, _ = command(*ask, HF_HOME=str(tmp_path)).communicate()
    answer = json.loads(out)
    assert sha[:12] in answer["source"]
    first = fracture_lib.load("pytorch-cnn").predict(film).scores[0]
    assert answer["scores"][0] == {"label": first.label, "probability": first.probability}


def test_a_training_killed_in_the_middle_goes_on_to_the_same_weights(film_folder, tmp_path):
    """The whole command as a process of its own; test_training does it for both frameworks."""

    def train(out):
        settings = ("--folds", 2, "--held-out", 1, "--epochs", 1)
        return command("train", "--model", "pytorch-cnn", "--data", film_folder, "--out", out, *settings)

    killed = tmp_path / "killed"
    kill_when(train(killed), (killed / "checkpoints" / "fold-0.safetensors").exists)
    assert not (killed / "evaluation.json").exists()
    both = [train(out) for out in (killed, tmp_path / "whole")]
    for process in both:
        out, _ = process.communicate()
        assert process.returncode == 0, out
    weights = [(out / "model.safetensors").read_bytes() for out in (killed, tmp_path / "whole")]
    assert weights[0] == weights[1]
