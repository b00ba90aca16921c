"""Faults from outside: damaged models, a full disk, no memory, a kill. One sentence each, nothing lost.

What belongs to one module is beside its other tests: a Hub that fails in test_hub, a push in test_publish.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

import fracture_lib
from fracture_lib import InvalidModel
from fracture_lib.hub import BUNDLE
from fracture_lib.panel import EVERYONE, Panel
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
    """A process with room for a hundred megabytes more, and a film of 20 million pixels."""
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
resource.setrlimit(resource.RLIMIT_AS, (now + 100_000_000, resource.RLIM_INFINITY))
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
