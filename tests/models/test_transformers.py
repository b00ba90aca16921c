"""The bundled model in transformers, after `register_auto_classes`."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from fracture_lib import load_image, load_model, register_auto_classes
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidArgument
from fracture_lib.hub import BUNDLE
from fracture_lib.io.image import PREPROCESSOR_CONFIG, preprocess
from fracture_lib.io.views import VIEWS
from fracture_lib.labels import CLASSES
from fracture_lib.models.model import read_model
from fracture_lib.models.pytorch import apply_cnn
from fracture_lib.models.transformers import FractureConfig, FractureForImageClassification
from fracture_lib.training.recipes import RECIPES
from tests.helpers.dicom_files import dicom

FOLDER = str(BUNDLE / "pytorch-cnn")


def pixels_of_16_bits() -> np.ndarray:
    return np.asarray(synthetic_radiograph("Oblique")).astype(np.uint16) * 37 + 1200


def png_of_16_bits() -> bytes:
    file = BytesIO()
    Image.fromarray(pixels_of_16_bits()).save(file, "PNG")
    return file.getvalue()


def dicom_of_16_bits() -> bytes:
    return dicom(pixels_of_16_bits())


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_auto_classes()
    register_auto_classes()  # a second call does nothing


def test_auto_model_gives_the_librarys_probabilities_and_a_loss(pixels):
    model = AutoModelForImageClassification.from_pretrained(FOLDER).eval()
    assert model.config.id2label == {c.id: c.label for c in CLASSES}
    with torch.no_grad():
        output = model(torch.from_numpy(pixels), labels=torch.zeros(len(pixels), dtype=torch.long))
    expected = read_model("pytorch-cnn").predict_proba(pixels)
    np.testing.assert_allclose(output.logits.softmax(1).numpy(), expected, atol=1e-4)
    assert output.loss.item() == pytest.approx(-np.log(expected[:, 0]).mean(), abs=1e-3)


def test_auto_image_processor_preprocesses_one_image_or_many(image_path):
    processor = AutoImageProcessor.from_pretrained(FOLDER)
    expected = preprocess(image_path)
    single = processor(str(image_path), return_tensors="pt")["pixel_values"]
    several = processor([str(image_path)] * 2, return_tensors="pt")["pixel_values"]
    assert single.shape == (1, *expected.shape) and several.shape == (2, *expected.shape)
    np.testing.assert_array_equal(single[0].numpy(), expected)
    np.testing.assert_array_equal(several[1].numpy(), expected)


def test_auto_image_processor_lists_the_views_in_its_config():
    config = AutoImageProcessor.from_pretrained(FOLDER).to_dict()
    assert config["views"] == PREPROCESSOR_CONFIG["views"] and len(config["views"]) == len(VIEWS)


def test_model_divides_the_mean_of_any_number_of_views_by_the_temperature(pixels):
    config = FractureConfig(architecture=RECIPES["pytorch-cnn"].architecture, temperature=1.5, num_labels=10)
    model = FractureForImageClassification(config).eval()
    images = torch.from_numpy(pixels)
    with torch.no_grad():
        views = [apply_cnn(model.blocks, model.head, images[:, [v]])[0] for v in range(images.shape[1])]
        logits = model(images).logits
    np.testing.assert_allclose(logits.numpy(), torch.stack(views).mean(0).numpy() / 1.5, atol=1e-5)


def test_image_classification_pipeline_gives_the_librarys_probabilities(image_path):
    classifier = pipeline("image-classification", model=FOLDER)
    probabilities = read_model("pytorch-cnn").predict_proba(preprocess(image_path)[None])[0]
    with pytest.warns(UserWarning, match=r"converted to 8-bit RGB.*load_image\(file\)\.pixels"):
        assert_scores(classifier(str(image_path), top_k=10), probabilities)


@pytest.mark.parametrize("make", [png_of_16_bits, dicom_of_16_bits], ids=["PNG", "DICOM"])
@pytest.mark.filterwarnings("error")
def test_image_classification_pipeline_of_loaded_pixels_gives_the_librarys_probabilities(tmp_path, make):
    path = tmp_path / "image"
    path.write_bytes(make())
    classifier = pipeline("image-classification", model=FOLDER)
    probabilities = load_model("pytorch-cnn").predict_proba(path)[0]
    assert_scores(classifier(load_image(path).pixels, top_k=10), probabilities)


def assert_scores(predictions, probabilities):
    assert len(predictions) == len(CLASSES)
    for prediction in predictions:
        expected = probabilities[[c.label for c in CLASSES].index(prediction["label"])]
        assert prediction["score"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.filterwarnings("error")
def test_image_processor_does_not_warn_about_an_image_as_its_file_was_read(image_path):
    processor = AutoImageProcessor.from_pretrained(FOLDER)
    for mode in ("L", "RGB"):
        with Image.open(image_path) as image:
            stored = BytesIO()
            image.convert(mode).save(stored, "PNG")
        processor(Image.open(stored))
    processor(Image.effect_noise((64, 64), 90))
    processor(Image.merge("RGB", [Image.effect_noise((64, 64), 90) for _ in range(3)]))  # colours


def test_image_processor_with_option_of_other_processors_raises_invalid_argument(image_path):
    processor = AutoImageProcessor.from_pretrained(FOLDER)
    with pytest.raises(InvalidArgument, match="fixed; leave out do_resize, size"):
        processor(str(image_path), do_resize=True, size={"height": 224, "width": 224})
