"""Full disks, too little memory and kills: a clear error message, and nothing lost."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fracture_lib
from fracture_lib.cli import main
from fracture_lib.hub import BUNDLE
from fracture_lib.models.report import EvaluationReport
from fracture_lib.training import trainer
from fracture_lib.training.recipes import RECIPES
from tests.helpers.resource_limits import full_disk

ROOT = Path(__file__).parent.parent


# Too little memory


def test_predict_with_too_little_memory_raises_and_the_next_image_is_classified(image_path):
    """Run a process that may allocate 40 MB more, on an image of 20 million pixels."""
    code = f"""
import io
import numpy as np
from PIL import Image
from fracture_lib import InferencePipeline, InvalidImage
from tests.helpers.resource_limits import memory_left
pipeline, large = InferencePipeline(), io.BytesIO()
Image.fromarray(np.tile(np.arange(250, dtype=np.uint8), (4000, 20))).save(large, "PNG", compress_level=1)
pipeline.predict({str(image_path)!r}, ["pytorch-cnn"])
with memory_left(40_000_000):
    for _ in range(2):
        try:
            pipeline.predict(large.getvalue(), ["pytorch-cnn"], name="large")
        except InvalidImage as error:
            print(error)
        print(*pipeline.predict({str(image_path)!r}, ["pytorch-cnn"]).predictions)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    message = "The image needs more memory than is available. Scale it down first."
    assert done.stdout.splitlines() == [message, "pytorch-cnn"] * 2, done.stderr


# A full disk


class TinyLearner:
    """A `training.learner.Learner` with one layer on eight pixels, which imports no framework."""

    def __init__(self) -> None:
        self.weights = [np.zeros((8, 10), np.float32)]

    def features(self, pixels):
        return pixels

    def step(self, features, targets, learning_rate, dropout_seed):
        self.weights = [self.weights[0] + learning_rate * self._eight_pixels(features).T @ targets]
        return 0.0

    def logits(self, features):
        return self._eight_pixels(features) @ self.weights[0]

    def _eight_pixels(self, features):
        return features.reshape(len(features), -1)[:, 64 :: 128 * 16]

    def get_weights(self):
        return self.weights

    def set_weights(self, weights):
        self.weights = weights

    def get_optimizer_state(self):
        return [np.zeros(100_000, np.float32)]  # larger than the space left on the disk

    def set_optimizer_state(self, state):
        pass

    def save(self, folder):
        for name in ("model.onnx", "model.safetensors", "head.safetensors"):
            shutil.copy(BUNDLE / "pytorch-cnn" / name, folder)


@pytest.mark.parametrize(
    ("n_cached_views", "n_bytes"), [(0, 50_000), (3, 500)], ids=["checkpoint", "cached-features"]
)
def test_train_on_full_disk_fails_with_a_message_and_resumes_when_there_is_space(
    dataset_folder, tmp_path, monkeypatch, capsys, n_cached_views, n_bytes
):
    monkeypatch.setattr(trainer, "build_learner", lambda *_: TinyLearner())
    recipe = replace(RECIPES["pytorch-cnn"], n_cached_views=n_cached_views)
    monkeypatch.setitem(RECIPES, "pytorch-cnn", recipe)
    arguments = ["train", "--model", "pytorch-cnn", "--data", str(dataset_folder), "--out", str(tmp_path)]
    arguments += ["--n-folds", "2", "--n-measured-folds", "1", "--epochs", "1"]
    with full_disk(n_bytes):
        assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "error: " in error and "File too large" in error and "Traceback" not in error
    assert main(arguments) == 0
    assert EvaluationReport.read(tmp_path).n == 20


PUSH = ("push", "model", "--folder", "pytorch-cnn", "--repo")


def test_push_from_full_disk_changes_nothing_and_succeeds_when_there_is_space(hub, capsys):
    repo = "someone/full-disk"
    hub.add(repo, BUNDLE / "pytorch-cnn")
    before = hub.files(repo)
    with full_disk(1000):
        assert main([*PUSH, repo]) == 1
    error = capsys.readouterr().err
    assert "error: " in error and repo in error and "Traceback" not in error
    assert hub.files(repo) == before
    assert main([*PUSH, repo]) == 0


# A killed process


def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    """Start the command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "fracture_lib", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_when(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Send SIGKILL to a process as soon as the condition holds."""
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.kill()
    process.communicate()


def test_push_killed_during_upload_leaves_the_repository_unchanged_and_the_next_succeeds(hub):
    repo = "someone/killed-push"
    hub.add(repo, {"config.json": b"{}"})
    before = hub.files(repo)
    hub.uploads.clear()
    hub.requests.clear()
    hub.fail("PUT", "/lfs/", seconds=5)
    kill_when(start(*PUSH, repo), lambda: any(method == "PUT" for method, _ in hub.requests))
    assert hub.files(repo) == before
    assert main([*PUSH, repo]) == 0
    assert hub.files(repo)["model.onnx"] == (BUNDLE / "pytorch-cnn" / "model.onnx").read_bytes()


def test_download_killed_half_way_does_not_disturb_the_next(hub, image_path, tmp_path):
    repo = "someone/killed-download"
    sha = hub.add(repo, BUNDLE / "pytorch-cnn")
    hub.requests.clear()
    hub.fail("GET", "/resolve/.*model.onnx", stall=60)
    command = ("predict", image_path, "--json", "--model", f"hf-hub:{repo}")

    def is_half_done() -> bool:
        requested = any(method == "GET" and path.endswith("model.onnx") for method, path in hub.requests)
        return requested and any(tmp_path.rglob("*.incomplete"))

    kill_when(start(*command, HF_HOME=str(tmp_path)), is_half_done)
    output, _ = start(*command, HF_HOME=str(tmp_path)).communicate()
    [prediction] = json.loads(output)["predictions"]
    assert sha[:12] in prediction["source"]
    top = fracture_lib.load_model("pytorch-cnn").predict(image_path).scores[0]
    assert prediction["scores"][0] == {"label": top.label, "probability": top.probability}


@pytest.mark.slow
def test_train_killed_and_resumed_writes_the_same_weights(dataset_folder, tmp_path):
    """Run the whole command in a process of its own; the trainer's tests cover both frameworks."""

    def train(out: Path) -> subprocess.Popen[str]:
        settings = ("--n-folds", 2, "--n-measured-folds", 1, "--epochs", 1)
        return start("train", "--model", "pytorch-cnn", "--data", dataset_folder, "--out", out, *settings)

    killed, uninterrupted = tmp_path / "killed", tmp_path / "uninterrupted"
    kill_when(train(killed), (killed / "checkpoints" / "fold-0.safetensors").exists)
    assert not (killed / "evaluation.json").exists()
    for process in [train(killed), train(uninterrupted)]:
        output, _ = process.communicate()
        assert process.returncode == 0, output
    weights = [(out / "model.safetensors").read_bytes() for out in (killed, uninterrupted)]
    assert weights[0] == weights[1]
