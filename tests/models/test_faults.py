"""Damaged model folders: found when a model is loaded, without harm to the others."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

import fracture_lib
from fracture_lib.errors import InvalidModel
from fracture_lib.hub import BUNDLE
from fracture_lib.inference import ood
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.registry import ALL_MODELS, MODELS

Damage = Callable[[Path], None]  # damages the model folder that it is given


@pytest.fixture
def bundle(tmp_path, monkeypatch) -> Path:
    """A copy of the bundle that may be damaged, from which every model now comes."""
    for module in ("hub", "models.model", "inference.pipeline"):
        monkeypatch.setattr(f"fracture_lib.{module}.BUNDLE", tmp_path)
    shutil.copytree(BUNDLE, tmp_path, dirs_exist_ok=True, copy_function=lambda a, b: Path(b).symlink_to(a))
    return tmp_path


def replace_file(path: Path, data: bytes) -> None:
    path.unlink()  # a link to the real file
    path.write_bytes(data)


def edit_json(name: str, **entries: Any) -> Damage:
    """Change entries of a JSON file; None removes an entry."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | entries
        kept = {key: value for key, value in content.items() if value is not None}
        replace_file(folder / name, json.dumps(kept).encode())

    return damage


def write(name: str, data: bytes) -> Damage:
    return lambda folder: replace_file(folder / name, data)


def truncate(name: str, size: int) -> Damage:
    return lambda folder: replace_file(folder / name, (folder / name).read_bytes()[:size])


def swap(name: str, model: str) -> Damage:
    """Replace a file with that of another model."""
    return lambda folder: replace_file(folder / name, (BUNDLE / model / name).read_bytes())


def delete(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def set_weights_to_nan(folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx")
    for tensor in graph.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            nan = np.full_like(numpy_helper.to_array(tensor), np.nan)
            tensor.CopyFrom(numpy_helper.from_array(nan, tensor.name))
    replace_file(folder / "model.onnx", graph.SerializeToString())


def remove_feature_map(folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx")
    graph.graph.output.pop()
    replace_file(folder / "model.onnx", graph.SerializeToString())


def remove_one_class(folder: Path) -> None:
    """Leave a graph and a head that agree, with nine logits."""
    graph = onnx.load(folder / "model.onnx")
    head = load_file(folder / "head.safetensors")
    shapes = {head["logits_kernel"].shape[::-1], head["logits_bias"].shape}
    for tensor in graph.graph.initializer:
        if tuple(tensor.dims) in shapes:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:9], tensor.name))
    for output in graph.graph.output:
        if output.name == "logits":
            output.type.tensor_type.shape.dim[1].dim_value = 9
    replace_file(folder / "model.onnx", graph.SerializeToString())
    head |= {"logits_kernel": head["logits_kernel"][:, :9], "logits_bias": head["logits_bias"][:9]}
    replace_file(folder / "head.safetensors", b"")
    save_file({k: np.ascontiguousarray(v) for k, v in head.items()}, folder / "head.safetensors")


# What is damaged -> (how, pattern of the message)
DAMAGES: dict[str, tuple[Damage, str]] = {
    "graph-empty": (write("model.onnx", b""), r"model\.onnx cannot be read\. Download it again\.$"),
    "graph-truncated": (truncate("model.onnx", 700_000), r"model\.onnx cannot be read\. Download it"),
    "graph-of-other-architecture": (swap("model.onnx", "resnet50"), "self-check|different models"),
    "graph-of-other-model": (swap("model.onnx", "tensorflow-cnn"), "different models"),
    "graph-without-feature-map": (remove_feature_map, "failed its self-check"),
    "graph-of-nan": (set_weights_to_nan, "different models"),
    "nine-logits": (remove_one_class, "different models"),
    "head-empty": (write("head.safetensors", b""), r"no readable head\.safetensors"),
    "head-truncated": (truncate("head.safetensors", 5000), r"no readable head\.safetensors"),
    "head-of-other-model": (swap("head.safetensors", "tensorflow-cnn"), "different models"),
    "head-of-other-architecture": (swap("head.safetensors", "resnet50"), "failed its self-check"),
    "config-empty": (write("config.json", b""), r"config\.json cannot be read"),
    "config-not-an-object": (write("config.json", b"[1]"), "does not hold a JSON object"),
    "config-without-temperature": (edit_json("config.json", temperature=None), "lacks temperature"),
    "config-with-zero-temperature": (edit_json("config.json", temperature=0), r"the temperature 0\.0"),
    "config-with-list-of-classes": (edit_json("config.json", id2label=["Spiral"]), "id2label"),
    "evaluation-missing": (delete("evaluation.json"), r"has no evaluation\.json"),
    "evaluation-truncated": (truncate("evaluation.json", 3000), r"evaluation\.json cannot be read"),
    "evaluation-empty": (write("evaluation.json", b"{}"), r"evaluation\.json lacks .*confusion_matrix"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_load_model_with_damaged_folder_raises_and_others_load(bundle, name):
    damage, pattern = DAMAGES[name]
    damage(bundle / "pytorch-cnn")
    with pytest.raises(InvalidModel, match=pattern):
        fracture_lib.load_model("pytorch-cnn")
    assert fracture_lib.load_model("tensorflow-cnn").name == "tensorflow-cnn"


@pytest.mark.parametrize(
    ("damaged", "answering"),
    [
        ("resnet50/model.onnx", ["pytorch-cnn", "tensorflow-cnn"]),
        ("ood/discriminant.safetensors", ALL_MODELS),
    ],
    ids=["backbone", "discriminant"],
)
def test_predict_with_damaged_ood_files_warns_and_models_answer(
    bundle, image_path, monkeypatch, damaged, answering: Sequence[str]
):
    monkeypatch.setattr(ood, "OOD_FOLDER", bundle / "ood")
    ood._read_detector.cache_clear()
    replace_file(bundle / damaged, (BUNDLE / damaged).read_bytes()[:300_000])
    pipeline = InferencePipeline()
    result = pipeline.predict(image_path)
    assert list(result.predictions) == list(answering)
    assert result.ood is None and not result.is_rejected
    [warning] = result.warnings
    assert warning.startswith("Could not check whether this is an X-ray: ")
    assert warning in result.to_dict(3)["warnings"]
    monkeypatch.undo()
    assert not pipeline.predict(image_path).warnings, "repaired files are found without a restart"


def test_predict_with_damaged_ensemble_returns_its_members(bundle, image_path):
    truncate("evaluation.json", 3000)(bundle / "ensemble")
    result = InferencePipeline().predict(image_path)
    assert list(result.predictions) == list(MODELS) and "cannot be read" in result.failures["ensemble"]
