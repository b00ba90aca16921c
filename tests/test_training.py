"""Training for real, but tiny: slim nets, a few epochs, drawn films."""

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fracture_lib import load
from fracture_lib.__main__ import main
from fracture_lib.augment import Augmentation, augment
from fracture_lib.backends import keras as keras_backend
from fracture_lib.backends import pytorch as pytorch_backend
from fracture_lib.cards import percent
from fracture_lib.data import load_films, pixels_of
from fracture_lib.ensemble import measure_ensemble
from fracture_lib.errors import FractureError, InvalidData, InvalidModel, ModelUnavailable
from fracture_lib.evaluation import evaluate
from fracture_lib.recipes import RECIPES
from fracture_lib.robustness import CHANGES, mask_markers
from fracture_lib.training import train

ROOT = Path(__file__).parent.parent
CNNS = {"pytorch-cnn": pytorch_backend, "tensorflow-cnn": keras_backend}
CHECKPOINT_AT = 5  # epochs


def tiny(name, epochs=7):
    slim = {**RECIPES[name].architecture, "channels": [4, 4, 8], "hidden": 8}
    return replace(RECIPES[name], architecture=slim, epochs=epochs, batch_size=8)


def answers(folder, pixels):
    return load(folder).probabilities(pixels)


@pytest.fixture(scope="module", params=CNNS)
def trained(request, film_folder, tmp_path_factory):
    """(name, folder) of a tiny model, measured on one of four folds."""
    out = tmp_path_factory.mktemp(request.param)
    train(request.param, film_folder, out, count=4, held_out=1, recipe=tiny(request.param))
    return request.param, out


def test_training_writes_a_model_folder_that_loads(trained, film):
    name, out = trained
    assert {"config.json", "preprocessor_config.json", "evaluation.json", "README.md", "model.onnx"} <= {
        p.name for p in out.iterdir()
    }
    for runtime in ("onnx", "native"):
        assert load(out, runtime).predict(film).model == name


def test_the_report_says_what_was_measured(trained):
    _, out = trained
    report = json.loads((out / "evaluation.json").read_text())
    assert report["n"] == 10 and report["groups"] == 10  # one of four folds of 40 films
    assert report["data"]["films"] == 40 and report["data"]["grouped_by"] == "source_group"
    assert "1 of 4 grouped folds" in report["protocol"]
    assert [row["epoch"] for row in report["training"]["history"]] == [5, 7]
    last = report["training"]["history"][-1]
    assert last["held_out_accuracy"] == report["metrics"]["accuracy"]["value"]
    assert set(report["robustness"]) == set(CHANGES) and report["test"] is None
    assert {"0.5", "0.8"} < set(report["selective"]["accuracy_at"])
    assert 0 <= report["conformal"]["coverage"]["value"] <= 1
    for metric in report["metrics"].values():
        assert metric["low"] <= metric["high"]


def test_the_card_holds_the_report(trained):
    from huggingface_hub import ModelCard

    name, out = trained
    report = json.loads((out / "evaluation.json").read_text())
    card = ModelCard.load(out / "README.md")
    assert card.data.eval_results[0].metric_value == report["metrics"]["accuracy"]["value"]
    assert card.data.pipeline_tag == "image-classification"
    assert f"n = {report['n']} films" in card.text and report["data"]["fingerprint"] in card.text
    assert "Bone Break" not in card.text, "these films are drawn"
    for sentence in ("Not a medical device", '"no fracture" class', "own split"):
        assert sentence in card.text
    assert name in card.text and "{{" not in card.text


def test_the_same_seed_gives_the_same_model_and_resuming_gives_it_too(
    trained, film_folder, tmp_path, pixels, monkeypatch
):
    name, uninterrupted = trained
    learner = CNNS[name].Learner
    step, calls = learner.step, []

    def killed(self, *arguments):
        calls.append(1)
        if len(calls) == 3 * (CHECKPOINT_AT + 1):  # three steps an epoch: past the first checkpoint
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(learner, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(name, film_folder, tmp_path, count=4, held_out=1, recipe=tiny(name))
    train(name, film_folder, tmp_path, count=4, held_out=1, recipe=tiny(name))
    assert len(calls) == 3 * 7 + 5 * 7 + 3, "three steps of the sixth epoch again, and no more"
    np.testing.assert_array_equal(answers(tmp_path, pixels), answers(uninterrupted, pixels))


def test_another_run_does_not_take_up_foreign_checkpoints(trained, film_folder):
    name, out = trained
    with pytest.raises(InvalidData, match="another seed"):
        train(name, film_folder, out, count=4, held_out=1, seed=1, recipe=tiny(name))


def test_evaluate_scores_a_trained_folder_and_says_when_it_knows_the_films(trained, film_folder, tmp_path):
    name, out = trained
    report = evaluate(out, film_folder, "Train")
    assert (report["model"], report["n"]) == (name, 40)
    assert report["source"].startswith("local folder")
    assert "memory, not accuracy" in report["protocol"]
    shutil.copytree(film_folder / "Spiral fracture", tmp_path / "Spiral")
    unknown = evaluate(out, tmp_path)
    assert unknown["n"] == 4 and "memory" not in unknown["protocol"]


def test_the_ensemble_is_measured_on_the_films_that_its_members_left_out(trained, tmp_path):
    _, folder = trained
    alone = json.loads((folder / "evaluation.json").read_text())
    together = measure_ensemble([folder, folder], tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == together
    assert together["n"] == alone["n"] and together["members"] == [alone["model"]] * 2
    assert together["confusion_matrix"] == alone["confusion_matrix"], "twice the same model is that model"
    assert together["weights"] == {alone["model"]: 0.5}
    assert together["minus_equal_weights"]["accuracy"] == {"value": 0, "low": 0, "high": 0}


def test_an_ensemble_of_unlike_or_unmeasured_members_is_refused(trained, tmp_path):
    from safetensors.numpy import load_file, save_file

    _, folder = trained
    other = shutil.copytree(folder, tmp_path / "other")
    kept = other / "out_of_fold.safetensors"
    arrays = load_file(kept)
    save_file({**arrays, "indices": arrays["indices"] + 1}, kept, metadata={"fingerprint": "other"})
    with pytest.raises(InvalidData, match="held out other films"):
        measure_ensemble([folder, other], tmp_path)
    kept.unlink()
    with pytest.raises(InvalidModel, match="out_of_fold"):
        measure_ensemble([folder, other], tmp_path)


def test_films_with_a_near_copy_in_training_are_also_left_out(trained, film_folder, tmp_path):
    """Two mirrored copies of training films and one film of another kind: one is clean."""
    from PIL import Image, ImageOps

    _, folder = trained
    data = tmp_path / "data"
    shutil.copytree(film_folder / "Spiral fracture", data / "Spiral")
    (data / "Spiral" / "Test").mkdir()
    for seed in (0, 1):
        with Image.open(data / "Spiral" / "Train" / f"{seed}.png") as image:
            ImageOps.mirror(image).save(data / "Spiral" / "Test" / f"{seed}.png")
    noise = np.random.default_rng(0).integers(0, 255, (16, 16), np.uint8)
    Image.fromarray(noise).resize((128, 128)).save(data / "Spiral" / "Test" / "noise.png")
    report = evaluate(folder, data, "Test", apart_from="Train")
    assert (report["n"], report["clean"]["n"]) == (3, 1)


def test_recorded_test_figures_reach_the_card(trained, film_folder, tmp_path, capsys):
    folder = shutil.copytree(trained[1], tmp_path / "model")
    assert "withheld, not yet scored" in (folder / "README.md").read_text()
    assert main(["evaluate", "--model", str(folder), "--data", str(film_folder), "--record"]) == 0
    evaluation = json.loads((folder / "evaluation.json").read_text())
    card = (folder / "README.md").read_text()
    assert evaluation["test"]["n"] == 40 and "withheld" not in card
    assert f"| all of Test | 40 | {percent(evaluation['test']['metrics']['accuracy'])} |" in card


def test_wrong_arguments_are_sentences(film_folder, tmp_path):
    with pytest.raises(FractureError, match="hold out 6 of 5"):
        train("pytorch-cnn", film_folder, tmp_path, held_out=6)
    with pytest.raises(InvalidData, match="folds"):
        train("pytorch-cnn", film_folder, tmp_path, count=400, recipe=tiny("pytorch-cnn"))
    with pytest.raises(ModelUnavailable, match="neither a safetensors file"):
        train("resnet50", film_folder, tmp_path, pretrained="no file.safetensors")


@pytest.fixture
def twins(monkeypatch):
    """A torch and a Keras learner of the CNN recipe, without dropout, that hold the same weights."""
    monkeypatch.setattr(pytorch_backend.torch, "autocast", lambda *_: nullcontext())  # all in float32
    assert RECIPES["pytorch-cnn"] == RECIPES["tensorflow-cnn"]
    recipe = RECIPES["pytorch-cnn"]
    still = {**recipe.architecture, "dropouts": [0, 0, 0], "head_dropout": 0}
    recipe = replace(recipe, architecture=still)
    torch_net, keras_net = pytorch_backend.Learner(recipe, 0), keras_backend.Learner(recipe, 0)
    keras_net.set_weights(keras_layout(torch_net))
    return torch_net, keras_net


def keras_layout(torch_net):
    """The weights of a torch CNN in Keras's order and layouts."""
    weights = [w for w in torch_net.get_weights() if w.dtype.kind == "f"]  # no counters of batches
    return [w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T for w in weights]


def test_the_same_weights_give_the_same_logits_in_both_frameworks(twins, pixels):
    torch_net, keras_net = twins
    assert np.abs(torch_net.logits(pixels) - keras_net.logits(pixels)).max() < 1e-4


def test_a_training_step_is_the_same_in_both_frameworks(twins, pixels):
    targets = np.eye(10, dtype=np.float32)
    losses = np.array([[net.step(pixels, targets, 1e-4, seed=0) for net in twins] for _ in range(4)])
    np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-3)
    assert losses[-1, 0] < losses[0, 0]


def test_keras_trains_on_its_torch_backend_where_tensorflow_is_missing(film_folder, tmp_path, pixels):
    """Trained there, loaded here: the same file answers alike under TensorFlow and ONNX Runtime."""
    code = f"""
import sys
sys.modules["tensorflow"] = None  # importing it fails, as where it is not installed
sys.path.insert(0, "tests")
from test_training import tiny
from fracture_lib.training import train
train("tensorflow-cnn", {str(film_folder)!r}, {str(tmp_path)!r}, count=4, held_out=1,
      recipe=tiny("tensorflow-cnn", epochs=2))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    native, onnx = (load(tmp_path, runtime).probabilities(pixels) for runtime in ("native", "onnx"))
    assert np.abs(native - onnx).max() < 1e-4


# ---- ResNet50


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """(file of random ResNet50 weights in torchvision's names, the same network in transformers)."""
    import torch
    from safetensors.torch import save_file
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    network = ResNetModel(ResNetConfig(downsample_in_bottleneck=False)).eval()
    tensors = {}
    for key, tensor in network.state_dict().items():
        if torch.is_floating_point(tensor) and "running_var" in key:
            tensor.uniform_(0.5, 1.5)  # in place: the network has it too
        if key.endswith("running_mean"):
            tensor.normal_(0, 0.1)
        key = key.replace("embedder.embedder.convolution", "conv1").replace(
            "embedder.embedder.normalization", "bn1"
        )
        if key.startswith("encoder"):
            _, _, stage, _, block, *rest = key.split(".")
            at = f"layer{int(stage) + 1}.{block}."
            if rest[0] == "shortcut":
                key = at + "downsample." + {"convolution": "0.", "normalization": "1."}[rest[1]] + rest[2]
            else:
                kind = {"convolution": "conv", "normalization": "bn"}[rest[2]]
                key = f"{at}{kind}{int(rest[1]) + 1}.{rest[3]}"
        tensors[key] = tensor
    path = tmp_path_factory.mktemp("weights") / "resnet50.safetensors"
    save_file(tensors, path, metadata={"input": "RGB / 255, no mean/std"})
    return path, network


def test_our_resnet50_is_transformers_resnet50_on_grey_films(pretrained, pixels):
    """Version 1.5, as torchvision's and the Hub's weights expect: same features, same weights."""
    import keras
    import torch

    path, network = pretrained
    learner = keras_backend.Learner(RECIPES["resnet50"], 0, path)
    ours = keras.Model(learner.model.input, learner.model.get_layer("feature_map").output)
    with torch.no_grad():
        expected = network(torch.from_numpy(pixels).expand(-1, 3, -1, -1)).last_hidden_state.numpy()
    found = ours.predict_on_batch(pixels.reshape(-1, 128, 128, 1)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_weights_made_for_normalised_input_are_folded_in(pretrained, tmp_path):
    """The file without the note "no mean/std" is ImageNet's: same features on (x - mean) / std."""
    import keras
    import torch
    from safetensors.torch import load_file, save_file

    path, network = pretrained
    save_file(load_file(path), tmp_path / "imagenet.safetensors")
    learner = keras_backend.Learner(RECIPES["resnet50"], 0, tmp_path / "imagenet.safetensors")
    grey = np.full((1, 1, 128, 128), 0.3, np.float32)
    mean, std = (torch.tensor(v)[None, :, None, None] for v in keras_backend.IMAGENET)
    with torch.no_grad():
        stem = network.embedder.embedder((torch.from_numpy(grey).expand(-1, 3, -1, -1) - mean) / std)
    first = keras.Model(learner.model.input, learner.model.get_layer("bn1").output)
    found = np.maximum(first.predict_on_batch(grey.reshape(1, 128, 128, 1)), 0)
    centre = (0, 32, 32)  # away from the padded border
    np.testing.assert_allclose(found[centre], stem[0, :, 32, 32].numpy(), atol=1e-4)


def test_resnet50_trains_its_last_stage_and_head_only(pretrained, pixels):
    learner = keras_backend.Learner(RECIPES["resnet50"], 0, pretrained[0])
    trunk, tail = learner.trunk.get_weights(), learner.get_weights()
    learner.step(learner.features(pixels), np.eye(10, dtype=np.float32), 1e-3, seed=0)
    for old, new in zip(trunk, learner.trunk.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    moved = [(a != b).any() for a, b in zip(tail, learner.get_weights(), strict=True)]
    assert sum(moved) == len(learner.tail.trainable_weights) > 10


def test_weights_of_another_network_are_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, tmp_path / "w.safetensors")
    with pytest.raises(InvalidModel, match="no ResNet50"):
        keras_backend.Learner(RECIPES["resnet50"], 0, tmp_path / "w.safetensors")


# ---- augmentation


def test_augmented_views_are_seeded_differ_and_stay_in_range(film_folder):
    film = pixels_of(load_films(film_folder))[0, 0]
    views = [augment(film, Augmentation(), np.random.default_rng(i)) for i in range(30)]
    for view in views:
        assert view.shape == film.shape and view.dtype == np.float32
        assert view.min() >= 0 and view.max() <= 1
    assert len({view.tobytes() for view in views}) == 30
    again = augment(film, Augmentation(), np.random.default_rng(3))
    np.testing.assert_array_equal(again, views[3])


def test_no_strength_is_no_change(film_folder):
    film = pixels_of(load_films(film_folder))[0, 0]
    none = Augmentation(**dict.fromkeys(vars(Augmentation()), 0))
    np.testing.assert_allclose(augment(film, none, np.random.default_rng(0)), film, atol=1e-6)


# ---- robustness


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_film_is_a_film_and_differs(change):
    rng = np.random.default_rng(0)
    film = np.kron(rng.random((12, 8)), np.ones((8, 8))).astype(np.float32)
    film[4:10, 4:8] = 1  # a marker
    film[:20, :20] = np.where(film[:20, :20] < 1, 0.05, 1)
    changed = CHANGES[change](film)
    assert changed.dtype == film.dtype and changed.min() >= 0 and changed.max() <= 1
    assert changed.shape != film.shape or (np.abs(changed - film) > 0.01).any()


def test_markers_are_masked_and_bone_is_not():
    film = np.full((200, 200), 0.05, np.float32)
    film[60:140, 60:140] = 0.95  # bone: large, and in the middle
    film[10:20, 10:16] = 1  # a letter at the border
    masked = mask_markers(film)
    np.testing.assert_allclose(masked[10:20, 10:16], 0.05)
    np.testing.assert_array_equal(masked[60:140, 60:140], film[60:140, 60:140])
