import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fracture_lib.data.dataset import (
    assign_folds,
    load_dataset_folder,
    store_images,
    stream_pixels,
    stream_transformed,
)
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidArgument, InvalidData, UnknownLabel
from fracture_lib.io.image import content, load_image, preprocess
from fracture_lib.io.views import FAST_VIEWS, LETTERBOX, VIEWS
from fracture_lib.labels import CLASSES
from tests.helpers.dicom_files import dicom


def write_images(root: Path, pattern: str, seeds: tuple[int, ...] = (0,)) -> Path:
    """Write an image per class and seed into the folders of `pattern`, such as "{label}/Train"."""
    for c in CLASSES:
        folder = root / pattern.format(label=c.label)
        folder.mkdir(parents=True, exist_ok=True)
        for seed in seeds:
            synthetic_radiograph(c.label, seed, width=64, height=96).save(folder / f"{c.label}-{seed}.png")
    return root


# load_dataset_folder


@pytest.mark.parametrize(
    "pattern", ["{label} fracture/Test", "test/{label}", "{label}", "Test/{label} Fracture"]
)
def test_load_dataset_folder_reads_every_layout_alike(pattern, tmp_path):
    images = load_dataset_folder(write_images(tmp_path / "a", pattern), "Test")
    plain = load_dataset_folder(write_images(tmp_path / "b", "{label}"))
    assert sorted(images.labels) == list(range(10)) and images.labels.dtype == np.int64
    assert images.fingerprint == plain.fingerprint
    assert images.split == (None if pattern == "{label}" else "Test")


def test_load_dataset_folder_with_split_reads_only_that_split(tmp_path):
    write_images(write_images(tmp_path, "{label}/Train", (0, 1)), "{label}/Test", (2,))
    assert len(load_dataset_folder(tmp_path, "train").paths) == 20
    assert len(load_dataset_folder(str(tmp_path), "Test").paths) == 10
    everything = load_dataset_folder(tmp_path)
    assert len(everything.paths) == 30 and everything.split is None


def test_load_dataset_folder_with_unknown_split_names_those_it_found(tmp_path):
    write_images(write_images(tmp_path, "{label}/Train"), "{label}/Test")
    with pytest.raises(InvalidData, match=r"split Valid\. Images in all: 20; splits: test, train\."):
        load_dataset_folder(tmp_path, "Valid")


def test_load_dataset_folder_with_manifest_groups_by_source(dataset_folder):
    images = load_dataset_folder(dataset_folder, "Train")
    assert images.grouped_by == "source_group" and len(set(images.groups)) == 40
    assert images.groups.dtype == np.int64 and images.hub is None


def test_load_dataset_folder_with_incomplete_manifest_keeps_its_groups_and_adds_near_duplicates(
    dataset_folder, tmp_path, caplog
):
    data = shutil.copytree(dataset_folder, tmp_path / "data")
    rows = (data / "manifest.csv").read_text().splitlines()
    patients = [f"{row.rpartition(',')[0]},{i // 10}" for i, row in enumerate(rows[1:])]
    (data / "manifest.csv").write_text("\n".join([rows[0], *patients]))
    folder = data / "Spiral fracture" / "Train"
    synthetic_radiograph("Spiral", 9).save(folder / "new.png")
    shutil.copy(folder / "0.png", folder / "copy.png")  # links its copy's group
    images = load_dataset_folder(data)
    names = [path.relative_to(data).as_posix() for path in images.paths]
    groups = dict(zip(names, images.groups, strict=True))
    listed = [groups[row.partition(",")[0]] for row in patients]
    assert images.grouped_by == "source_group and perceptual hash" and images.groups.dtype == np.int64
    assert listed == np.repeat(listed[::10], 10).tolist() and len(set(listed)) == 4
    assert groups["Spiral fracture/Train/copy.png"] == groups["Spiral fracture/Train/0.png"]
    assert groups["Spiral fracture/Train/new.png"] not in listed and len(set(images.groups)) == 5
    assert "2 of 42 images have no source_group in manifest.csv, such as Train/copy.png" in caplog.text


def test_load_dataset_folder_with_empty_groups_only_groups_by_hash(tmp_path):
    write_images(tmp_path, "{label}")
    rows = [f"{c.label}/{c.label}-0.png," for c in CLASSES]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,source_group", *rows]))
    assert load_dataset_folder(tmp_path).grouped_by == "perceptual hash"


def test_load_dataset_folder_with_manifest_of_another_split_groups_by_hash(dataset_folder, tmp_path):
    data = shutil.copytree(dataset_folder, tmp_path / "data")
    shutil.copytree(data / "Spiral fracture" / "Train", data / "Spiral fracture" / "Test")
    assert load_dataset_folder(data, "Train").grouped_by == "source_group"
    assert load_dataset_folder(data, "Test").grouped_by == "perceptual hash"


# Files


EVERY_FORMAT = ["a.png", "a.PNG", "a.jpg", "a.jfif", "a.jpe", "a.tif", "a.webp", "a.bmp", "a.gif"]
EVERY_FORMAT += ["a.dcm", "a.DCM", "a.dicom", "IM000001", "1.2.840.1"]
METADATA = ["._0.png", ".DS_Store", "__MACOSX/._0.png", ".ipynb_checkpoints/0-checkpoint.png", "Thumbs.db"]


@pytest.mark.parametrize("name", [*METADATA, ".thumbnails/0.jpg", "@eaDir/0.jpg", "desktop.ini"])
@pytest.mark.parametrize("place", ["", "Spiral fracture", "Spiral fracture/Train"])
def test_load_dataset_folder_with_metadata_of_a_system_ignores_it(dataset_folder, tmp_path, place, name):
    data = shutil.copytree(dataset_folder, tmp_path / "data")
    path = data / place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"no image")
    assert len(load_dataset_folder(data, "Train").paths) == 40


@pytest.mark.parametrize("name", EVERY_FORMAT)
def test_load_dataset_folder_reads_every_format_that_load_image_reads(tmp_path, name):
    write_images(tmp_path, "{label}")
    image, path = synthetic_radiograph("Spiral", 5, width=64, height=96), tmp_path / "Spiral" / name
    if Image.registered_extensions().get(path.suffix.lower()):
        image.save(path, Image.registered_extensions()[path.suffix.lower()])
    else:
        path.write_bytes(dicom(np.asarray(image)))
    images = load_dataset_folder(tmp_path)
    assert path in images.paths and len(images.paths) == 11
    np.testing.assert_allclose(next(stream_pixels([path])), preprocess(image), atol=0.15)


def test_load_dataset_folder_with_other_files_among_the_images_counts_them(tmp_path, caplog):
    write_images(tmp_path, "{label}")
    for name in ("README.md", "Spiral/notes.txt", "Spiral/labels.json"):
        (tmp_path / name).write_text("text")
    assert len(load_dataset_folder(tmp_path).paths) == 10
    assert "Files that are not images were left out: 2, such as labels.json." in caplog.text


def test_load_dataset_folder_with_images_outside_the_splits_counts_them(dataset_folder, tmp_path, caplog):
    data = shutil.copytree(dataset_folder, tmp_path / "data")
    synthetic_radiograph("Spiral", 9).save(data / "Spiral fracture" / "loose.png")
    assert len(load_dataset_folder(data, "Train").paths) == 40
    assert "Images in no split folder were left out: 1, such as loose.png." in caplog.text


def test_load_dataset_folder_with_image_in_two_splits_names_it(tmp_path):
    write_images(tmp_path, "Test/{label}/Train")
    with pytest.raises(InvalidData, match=r"The split of Test/.*\.png is unclear"):
        load_dataset_folder(tmp_path, "Test")


# Groups


def test_load_dataset_folder_without_manifest_groups_near_duplicates_across_labels(tmp_path):
    write_images(tmp_path, "{label}")
    image = synthetic_radiograph("Spiral")
    image.save(tmp_path / "Spiral" / "original.png")
    ImageOps.mirror(image).save(tmp_path / "Spiral" / "flipped.png")
    image.save(tmp_path / "Oblique" / "resaved.jpg", quality=60)
    images = load_dataset_folder(tmp_path)
    assert images.grouped_by == "perceptual hash"
    groups = {path.name: group for path, group in zip(images.paths, images.groups, strict=True)}
    assert groups["original.png"] == groups["flipped.png"] == groups["resaved.jpg"]


def test_load_dataset_folder_with_manifest_without_groups_raises_invalid_data(tmp_path):
    write_images(tmp_path, "{label}")
    (tmp_path / "manifest.csv").write_text("path,label\na,b\n")
    with pytest.raises(InvalidData, match="needs the columns path and source_group"):
        load_dataset_folder(tmp_path)


def test_load_dataset_folder_without_images_tells_the_layouts(tmp_path):
    with pytest.raises(InvalidData, match=r"Images in all: 0; .* Expected <class>/<split>/image\.jpg"):
        load_dataset_folder(tmp_path)


def test_load_dataset_folder_with_image_outside_class_folders_names_it(tmp_path):
    synthetic_radiograph("Spiral").save(tmp_path / "loose.png")
    with pytest.raises(InvalidData, match=r"The class of loose\.png is unclear"):
        load_dataset_folder(tmp_path)


def test_load_dataset_folder_with_unknown_class_raises_unknown_label(dataset_folder, tmp_path):
    shutil.copytree(dataset_folder / "Spiral fracture", tmp_path / "Torus fracture")
    with pytest.raises(UnknownLabel, match='"Torus fracture"'):
        load_dataset_folder(tmp_path)


# store_images, stream_pixels, stream_transformed


def test_store_images_keeps_what_views_are_cut_from(dataset_folder, tmp_path):
    images = load_dataset_folder(dataset_folder)
    stored = store_images(images.paths[:3], tmp_path / "images.bin")
    assert len(stored) == 3 and stored[1].shape == (96, 64)
    np.testing.assert_array_equal(stored[2], content(images.paths[2]))


def test_stream_pixels_yields_the_model_input_of_each_image(dataset_folder):
    paths = load_dataset_folder(dataset_folder).paths
    pixels = np.stack([*stream_pixels(paths)])
    assert pixels.shape == (40, len(VIEWS), 128, 128) and pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels[7], preprocess(paths[7]))
    np.testing.assert_array_equal(np.stack([*stream_pixels(paths, FAST_VIEWS)]), pixels[:, :1])


def test_stream_transformed_applies_each_transform_at_full_size(dataset_folder):
    shapes = set()

    def flip(image):
        shapes.add(image.shape)
        return image[::-1]

    paths = load_dataset_folder(dataset_folder).paths
    pixels = np.stack([*stream_transformed(paths, [flip, lambda image: image], LETTERBOX)])
    assert pixels.shape == (40, 2, 128, 128) and shapes == {(96, 64)}
    np.testing.assert_array_equal(pixels[:, [1]], np.stack([*stream_pixels(paths, [LETTERBOX])]))
    np.testing.assert_allclose(pixels[:, 0], pixels[:, 1, ::-1], atol=1e-6)


def test_stream_pixels_counts_the_images_that_were_read_with_a_warning(dataset_folder, monkeypatch, caplog):
    calls = []

    def load(path):
        calls.append(path)
        texts = ("First of 3 frames.",) if len(calls) % 4 == 0 else ()
        return replace(load_image(path), warnings=texts + ("Window ignored.",) * (len(calls) == 4))

    monkeypatch.setattr("fracture_lib.data.reading.load_image", load)
    images = load_dataset_folder(dataset_folder)
    list(stream_pixels(images.paths))
    [record] = caplog.records
    assert record.getMessage() == (
        "Reading images: 10 of 40 images were read with a warning: First of 3 frames (10); "
        "Window ignored (1)."
    )


def test_stream_pixels_with_unreadable_image_names_it(tmp_path):
    write_images(tmp_path, "{label}")
    images = load_dataset_folder(tmp_path)
    images.paths[3].write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InvalidData, match=f"^{images.paths[3].name} cannot be read"):
        list(stream_pixels(images.paths))


# assign_folds


def test_assign_folds_keeps_groups_whole_and_stratifies(dataset_folder):
    images = replace(load_dataset_folder(dataset_folder, "Train"), groups=np.arange(40) // 2)
    folds = assign_folds(images, 2)
    for group in range(20):
        assert len(set(folds[images.groups == group])) == 1
    for fold in range(2):
        assert (np.bincount(images.labels[folds == fold], minlength=10) == 2).all()
    np.testing.assert_array_equal(folds, assign_folds(images, 2))


@pytest.mark.parametrize("n_folds", [-1, 0, 1, 5, 400])
def test_assign_folds_with_impossible_number_raises_invalid_argument(dataset_folder, n_folds):
    with pytest.raises(InvalidArgument, match=f"^n_folds is {n_folds}; these images allow 2 to 4"):
        assign_folds(load_dataset_folder(dataset_folder), n_folds)


def test_assign_folds_of_one_image_per_class_raises_invalid_data(tmp_path):
    with pytest.raises(InvalidData, match="Add images"):
        assign_folds(load_dataset_folder(write_images(tmp_path, "{label}")), 2)
