"""The pipeline: every model on one image, and what happens when a part fails."""

import io
from dataclasses import replace
from threading import Event, Thread

import numpy as np
import pytest
from PIL import Image

from fracture_lib import (
    ALL_MODELS,
    CLASSES,
    MODELS,
    InferencePipeline,
    InvalidArgument,
    InvalidImage,
    InvalidModel,
    ModelUnavailable,
    UnknownModel,
    check_ood,
    compare,
    load_model,
    preprocess,
)
from fracture_lib.errors import FractureError
from fracture_lib.hub import BUNDLE, ModelSource
from fracture_lib.inference import pipeline as pipeline_module
from fracture_lib.inference.pipeline import RETRY_INTERVAL
from fracture_lib.io.image import load_image, trim
from fracture_lib.io.views import FAST_VIEWS, VIEWS, make_views, project_maps
from fracture_lib.models import model as model_module
from fracture_lib.models.model import EnsembleModel, Model, read_model
from fracture_lib.registry import ENSEMBLE_MEMBERS
from tests.helpers.dicom_files import dicom


def test_predict_equals_each_model_alone(pipeline, image_path):
    result = pipeline.predict(image_path)
    assert list(result.predictions) == list(ALL_MODELS) and not result.failures
    for name, prediction in result.predictions.items():
        alone = load_model(name).predict(image_path, top_k=len(CLASSES))
        assert [s.label for s in prediction.scores] == [s.label for s in alone.scores]
        assert prediction.probability == pytest.approx(alone.probability)


def test_compare_equals_a_pipeline(pipeline, image_path):
    assert compare(image_path).to_dict()["summary"] == pipeline.predict(image_path).summary
    assert list(compare(image_path, ["resnet50"]).predictions) == ["resnet50"]


def test_compare_with_one_model_as_a_string_uses_that_model(image_path):
    assert list(compare(image_path, "resnet50").predictions) == ["resnet50"]


def test_compare_with_unknown_model_raises_unknown_model(image_path):
    with pytest.raises(UnknownModel, match='Did you mean "resnet50"'):
        compare(image_path, ["resnet51"])


def test_comparison_results_compare_by_identity_and_have_a_short_repr(image_path):
    result = compare(image_path)
    assert result == result and result != compare(image_path)
    assert len(repr(result)) < 3000 and "array" not in repr(result)


def test_predict_shows_the_model_input_and_the_image(pipeline, image_path):
    result = pipeline.predict(image_path)
    assert result.name == image_path.name
    np.testing.assert_array_equal(result.pixels, preprocess(image_path))
    assert result.preview.mode == "L" and max(result.preview.size) <= 640
    assert {p.cam.shape for p in result.predictions.values()} == {(len(CLASSES), 32, 32)}


def test_predict_without_visuals_gives_the_same_predictions_without_maps(pipeline, image_path):
    result = pipeline.predict(image_path, visuals=False)
    assert dict(result.predictions) == dict(pipeline.predict(image_path).predictions)
    assert {p.cam.size for p in result.predictions.values()} == {0} and result.preview.size == (0, 0)


def test_fast_pipeline_answers_from_one_view(image_path):
    fast = InferencePipeline(fast=True)
    result = fast.predict(image_path, ["pytorch-cnn"])
    np.testing.assert_array_equal(result.pixels, preprocess(image_path, FAST_VIEWS))
    [prediction] = result.predictions.values()
    expected = read_model("pytorch-cnn").predict_proba(preprocess(image_path, FAST_VIEWS)[None])
    assert prediction.probability == pytest.approx(expected.max(), abs=1e-5)
    assert prediction.cam.shape == (len(CLASSES), 32, 32)


def test_predict_projects_the_maps_of_all_views_onto_the_image(pipeline, image_path):
    """Their sum is that of the views' maps, without what lies on padding."""
    [prediction] = pipeline.predict(image_path, ["pytorch-cnn"]).predictions.values()
    image = trim(load_image(image_path)).pixels
    cam = read_model("pytorch-cnn").forward(make_views(image)[None]).cam[0]
    np.testing.assert_allclose(prediction.cam, project_maps(cam, image.shape, VIEWS), atol=1e-5)


def count_forward_passes(monkeypatch):
    passes = []
    forward = Model.forward

    def counted(self, pixels):
        passes.append((self.name, pixels.tobytes()))
        return forward(self, pixels)

    monkeypatch.setattr(Model, "forward", counted)
    return passes


def test_predict_runs_each_model_once_on_identical_input(pipeline, image_path, monkeypatch):
    pipeline.predict(image_path)
    passes = count_forward_passes(monkeypatch)
    pipeline.predict(image_path)
    assert sorted(name for name, _ in passes) == sorted(MODELS)
    assert len({pixels for _, pixels in passes}) == 1


def test_predict_on_out_of_distribution_image_rejects_it(pipeline, photograph):
    result = pipeline.predict(photograph, name="photo")
    assert result.is_rejected and result.ood.reason and not result.predictions
    assert result.to_dict()["is_ood"] and result.ood.message in result.to_dict()["warnings"]
    assert result.summary == "" and result.top_prediction is None


def test_predict_with_skip_ood_check_classifies_and_still_warns(pipeline, photograph):
    result = pipeline.predict(photograph, name="photo", skip_ood_check=True)
    assert list(result.predictions) == list(ALL_MODELS)
    assert result.ood.is_ood and not result.is_rejected and result.ood.message in result.warnings
    assert all(p.ood == result.ood and p.warnings == result.warnings for p in result.predictions.values())


def test_check_ood_of_photograph_and_radiograph_differ(photograph, image_path):
    assert check_ood(photograph).is_ood and "colour image" in check_ood(photograph).reason
    assert not check_ood(image_path).is_ood and check_ood(image_path).message == ""


def test_predict_with_a_model_that_fails_to_load_keeps_the_others(image_path, monkeypatch):
    def broken(reference, runtime):
        if reference == "resnet50":
            raise ModelUnavailable("it is gone.")
        return read_model(reference, runtime)

    monkeypatch.setattr(pipeline_module, "read_model", broken)
    pipeline = InferencePipeline()
    pipeline.warm_up()
    assert pipeline.ready
    result = pipeline.predict(image_path)
    assert list(result.predictions) == ["pytorch-cnn", "tensorflow-cnn"]
    assert result.failures["resnet50"] == "it is gone." and "resnet50" in result.failures["ensemble"]
    assert list(pipeline.predict(image_path, ["ensemble"]).failures) == ["ensemble"]


def test_get_model_that_failed_is_loaded_again_only_after_a_while(image_path, monkeypatch):
    references = []

    def unreachable(reference, runtime):
        references.append(reference)
        raise ModelUnavailable("The Hub cannot be reached.")

    now = 1000.0
    monkeypatch.setattr(pipeline_module, "monotonic", lambda: now)
    monkeypatch.setattr(pipeline_module, "read_model", unreachable)
    pipeline = InferencePipeline()
    for _ in range(3):
        assert pipeline.predict(image_path).failures["resnet50"] == "The Hub cannot be reached."
    assert references == list(ENSEMBLE_MEMBERS)
    now += RETRY_INTERVAL
    monkeypatch.setattr(pipeline_module, "read_model", read_model)
    assert list(pipeline.predict(image_path).predictions) == list(ALL_MODELS)


def test_get_model_from_a_folder_that_failed_is_loaded_again_at_once(tmp_path):
    pipeline, reference = InferencePipeline(), f"local-dir:{tmp_path / 'model'}"
    with pytest.raises(FractureError):
        pipeline.get_model(reference)
    (tmp_path / "model").symlink_to(BUNDLE / "resnet50")
    assert pipeline.get_model(reference).name == "resnet50"


@pytest.mark.parametrize("error", [KeyError("weights"), MemoryError(), RuntimeError("a driver")])
def test_unexpected_fault_of_a_model_stays_with_that_model(image_path, monkeypatch, error):
    forward = Model.forward

    def broken_load(reference, runtime):
        if reference == "resnet50":
            raise error
        return read_model(reference, runtime)

    def broken_forward(self, pixels):
        if self.name == "tensorflow-cnn":
            raise error
        return forward(self, pixels)

    monkeypatch.setattr(pipeline_module, "read_model", broken_load)
    monkeypatch.setattr(Model, "forward", broken_forward)
    result = InferencePipeline().predict(image_path)
    assert list(result.predictions) == ["pytorch-cnn"] and result.status == "answered"
    assert list(result.failures) == ["tensorflow-cnn", "resnet50", "ensemble"]
    assert "failed to load" in result.failures["resnet50"]
    assert "failed to run" in result.failures["tensorflow-cnn"]


def test_predict_without_any_model_left_has_failed(image_path, monkeypatch):
    def broken(*_):
        raise ModelUnavailable("it is gone.")

    monkeypatch.setattr(pipeline_module, "read_model", broken)
    result = InferencePipeline().predict(image_path)
    assert result.status == "failed" and list(result.failures) == list(ALL_MODELS)
    assert result.summary == ""


def test_predict_without_models_raises_invalid_argument(pipeline, image_path):
    with pytest.raises(InvalidArgument, match="Choose from pytorch-cnn"):
        pipeline.predict(image_path, [])


def test_warm_up_that_fails_unexpectedly_leaves_the_pipeline_ready(monkeypatch):
    pipeline = InferencePipeline()

    def broken(*_, **__):
        raise RuntimeError("a driver")

    monkeypatch.setattr(pipeline, "predict", broken)
    pipeline.warm_up()
    assert pipeline.ready


def test_configured_repository_of_another_model_is_an_error(monkeypatch):
    folder = BUNDLE / "pytorch-cnn"
    source = ModelSource(folder, "hub", repo="owner/name", revision="0" * 40)
    monkeypatch.setattr(model_module, "resolve_model", lambda *_: source)
    with pytest.raises(InvalidModel, match="holds pytorch-cnn, not resnet50"):
        InferencePipeline().get_model("resnet50")


def test_ensemble_of_other_weights_has_no_measured_calibration(monkeypatch):
    members = {name: read_model(name) for name in ENSEMBLE_MEMBERS}
    assert EnsembleModel(members).info.calibration
    members["resnet50"].source = replace(members["resnet50"].source, kind="hub", repo="owner/name")
    assert EnsembleModel(members).info.calibration == ()


def bordered_dicom(pixels, **elements):
    """A DICOM file of uint8 [H, W] inside a flat white border."""
    return dicom(np.pad(pixels, 40, constant_values=255), **elements)


@pytest.mark.parametrize("name", ["border", "not square", "both"])
def test_preview_and_views_stay_in_register(pipeline, name):
    tones = np.random.default_rng(0).integers(20, 230, (12, 8), np.uint8)  # none of its sides is flat
    pixels = np.asarray(Image.fromarray(tones).resize((160, 240), Image.Resampling.BICUBIC))
    files = {
        "border": bordered_dicom(pixels),
        "not square": dicom(pixels, PixelAspectRatio=[2, 1]),
        "both": bordered_dicom(pixels, PixelAspectRatio=[2, 1]),
    }
    result = pipeline.predict(io.BytesIO(files[name]), ["pytorch-cnn"], skip_ood_check=True)
    aspect = 240 / 160 * (1 if name == "border" else 2)
    assert result.preview.height / result.preview.width == pytest.approx(aspect, rel=0.03)
    shown = make_views(np.asarray(result.preview, np.float32) / 255)
    assert np.abs(shown - result.pixels).mean() < 0.02


def test_predict_without_ood_backbone_warns_and_classifies(image_path, monkeypatch):
    def broken(folder):
        raise ModelUnavailable("it is gone.")

    monkeypatch.setattr(pipeline_module, "_read_backbone", broken)
    result = InferencePipeline().predict(image_path, ["pytorch-cnn"])
    assert list(result.predictions) == ["pytorch-cnn"] and result.ood is None
    assert result.to_dict()["is_ood"] is None
    assert result.warnings == ("Could not check whether this is an X-ray: it is gone.",)


def test_get_model_does_not_wait_for_another_model_to_load(monkeypatch):
    loading, release = Event(), Event()

    def slow(reference, runtime):
        if reference == "resnet50":
            loading.set()
            assert release.wait(60)
        return read_model(reference, runtime)

    monkeypatch.setattr(pipeline_module, "read_model", slow)
    pipeline = InferencePipeline()
    thread = Thread(target=pipeline.get_model, args=["resnet50"])
    thread.start()
    try:
        assert loading.wait(60)
        assert pipeline.get_model("pytorch-cnn").name == "pytorch-cnn"
        assert thread.is_alive()
    finally:
        release.set()
        thread.join()


def test_get_model_from_several_threads_loads_once(monkeypatch):
    loaded = []
    monkeypatch.setattr(
        pipeline_module, "read_model", lambda *a: loaded.append(a) or read_model("pytorch-cnn")
    )
    pipeline = InferencePipeline()
    threads = [Thread(target=pipeline.get_model, args=["pytorch-cnn"]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 1


def test_ood_backbone_is_the_pipelines_own_bundled_resnet50():
    pipeline = InferencePipeline()
    assert pipeline.ood_backbone().source.folder == BUNDLE / "resnet50"
    own = pipeline.get_model("resnet50")
    assert pipeline.ood_backbone() is own


def test_ood_backbone_of_native_pipeline_runs_on_onnx():
    assert InferencePipeline("native").ood_backbone().runtime == "onnx"


def test_predict_out_of_memory_raises_invalid_image(pipeline, image_path, monkeypatch):
    def too_large(source):
        raise MemoryError

    monkeypatch.setattr(pipeline_module, "load_image", too_large)
    with pytest.raises(InvalidImage, match="more memory than is available"):
        pipeline.predict(image_path)
