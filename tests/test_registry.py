from importlib.util import find_spec

import pytest

from fracture_lib.hub import BUNDLE, HUB_PREFIX
from fracture_lib.registry import ALL_MODELS, ENSEMBLE, MODELS, list_models, model_title


def test_all_models_are_the_three_models_and_their_ensemble():
    assert ALL_MODELS == ("pytorch-cnn", "tensorflow-cnn", "resnet50", ENSEMBLE)
    assert list(MODELS) == list(ALL_MODELS[:-1])


def test_list_models_returns_a_new_list_of_all_models():
    list_models().clear()
    assert list_models() == list(ALL_MODELS)


def test_model_title_is_different_for_every_model():
    titles = [model_title(name) for name in ALL_MODELS]
    assert len(set(titles)) == len(ALL_MODELS)
    assert titles[0] == MODELS["pytorch-cnn"].title


@pytest.mark.parametrize("spec", MODELS.values(), ids=MODELS)
def test_model_spec_has_a_framework_module_a_bundled_folder_and_a_reference(spec):
    assert find_spec(f"fracture_lib.models.{spec.framework}")
    assert (BUNDLE / spec.name / "model.onnx").exists()
    assert spec.reference_accuracy is None or 0.1 < spec.reference_accuracy < 0.5
    assert spec.pretrained is None or spec.pretrained.startswith(HUB_PREFIX)
    assert spec.summary.endswith(".")


def test_configured_repo_is_read_from_the_environment_at_each_call(monkeypatch):
    spec = MODELS["pytorch-cnn"]
    assert spec.hub_variable == "FRACTURE_HUB_PYTORCH_CNN"
    monkeypatch.delenv(spec.hub_variable, raising=False)
    assert spec.configured_repo is None
    monkeypatch.setenv(spec.hub_variable, "")
    assert spec.configured_repo is None
    monkeypatch.setenv(spec.hub_variable, "owner/name@main")
    assert spec.configured_repo == "owner/name@main"
