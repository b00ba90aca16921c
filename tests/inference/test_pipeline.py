"""The pipeline: every model on one image, and what happens when a part fails."""

from threading import Event, Thread

import numpy as np
import pytest

from fracture_lib import (
    ALL_MODELS,
    CLASSES,
    MODELS,
    InferencePipeline,
    InvalidImage,
    ModelUnavailable,
    UnknownModel,
    check_ood,
    compare,
    load_model,
    preprocess,
)
from fracture_lib.hub import BUNDLE
from fracture_lib.inference import pipeline as pipeline_module
from fracture_lib.models.model import Model, read_model


@pytest.fixture(scope="module")
def pipeline():
    return InferencePipeline()


@pytest.fixture(scope="module")
def photograph():
    """A picture in all colours: uint8 [96, 96, 3]."""
    y, x = np.mgrid[0:1:96j, 0:1:96j]
    return np.uint8(255 * np.dstack([x, y, 1 - x]))


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


def test_predict_shows_the_model_input_and_its_content_box(pipeline, image_path):
    result = pipeline.predict(image_path)
    assert result.name == image_path.name
    np.testing.assert_array_equal(result.pixels, preprocess(image_path))
    rows, columns = result.content_box
    padding = result.pixels.copy()
    padding[rows, columns] = 0
    assert (padding == 0).all() and result.pixels[rows, columns].max() == result.pixels.max()
    assert result.preview.mode == "L" and max(result.preview.size) <= 640


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
