"""Datasets from the Hub, from Kaggle and from image folders of `datasets`."""

import io
import shutil
import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pytest

from fracture_lib.data.dataset import load_dataset_folder, stream_pixels
from fracture_lib.data.sources import resolve_dataset
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidData, UnknownLabel
from fracture_lib.io.image import preprocess
from fracture_lib.labels import CLASSES
from tests.helpers.dicom_files import dicom
from tests.helpers.images import encode_image


def parquet(rows: list[dict]) -> bytes:
    """Return a file of a Hub dataset; the bytes in the column "image" become images."""
    buffer = io.BytesIO()
    rows = [row | {"image": {"bytes": row["image"], "path": None}} for row in rows]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(buffer)
    return buffer.getvalue()


@pytest.fixture
def dataset_repo(hub):
    """A Hub dataset with one image per class, and a group for each."""
    rows = [
        {"image": encode_image(synthetic_radiograph(c.label, width=64, height=96)), "label": c.label}
        | {"source_group": str(c.id // 2)}
        for c in CLASSES
    ]
    hub.add("someone/images", {"data/train-00000.parquet": parquet(rows)}, kind="datasets")
    return "someone/images"


def test_resolve_dataset_with_folder_returns_it(dataset_folder):
    assert resolve_dataset(dataset_folder) == resolve_dataset(str(dataset_folder)) == dataset_folder


@pytest.mark.parametrize("reference", ["someone/images", "no folder", "someone/images@main"])
def test_resolve_dataset_with_anything_else_names_the_three_forms_and_asks_no_hub(hub, reference):
    hub.requests.clear()
    with pytest.raises(InvalidData, match=f'There is no folder {reference}.*"hf-hub:owner/name".*"kaggle:'):
        resolve_dataset(reference)
    assert not hub.requests


def test_resolve_dataset_with_hub_reference_downloads_it_once(hub, dataset_repo):
    folder = resolve_dataset(f"hf-hub:{dataset_repo}")
    assert len(list(folder.rglob("*.png"))) == 10 and (folder / "manifest.csv").exists()
    hub.requests.clear()
    assert resolve_dataset(f"hf-hub:{dataset_repo}@main") == folder
    assert hub.requests and not [path for _, path in hub.requests if "/resolve/" in path]


def test_load_dataset_folder_of_hub_dataset_keeps_its_groups_and_name(dataset_repo):
    images = load_dataset_folder(f"hf-hub:{dataset_repo}@main", "train")
    assert images.hub == f"{dataset_repo}@main" and images.grouped_by == "source_group"
    assert (images.groups == images.labels // 2).all() and images.split == "train"


def test_load_dataset_folder_of_hub_dataset_with_some_groups_keeps_them(hub):
    rows = [
        {"image": encode_image(synthetic_radiograph(c.label)), "label": c.label}
        | {"source_group": None if c.id == 9 else str(c.id // 3)}
        for c in CLASSES
    ]
    hub.add("someone/partly", {"data/train-00000.parquet": parquet(rows)}, kind="datasets")
    images = load_dataset_folder("hf-hub:someone/partly")
    assert images.grouped_by == "source_group and perceptual hash"
    groups = images.groups[np.argsort(images.labels)]
    assert len(set(groups)) == 4 and (groups[:9] == np.repeat(groups[[0, 3, 6]], 3)).all()


def test_load_dataset_folder_of_hub_dataset_of_dicom_files_reads_them(hub):
    image = synthetic_radiograph("Spiral", width=64, height=96)
    data = parquet([{"image": dicom(np.asarray(image)), "label": "Spiral"}])
    hub.add("someone/dicom", {"data/train-00000.parquet": data}, kind="datasets")
    pixels = np.stack([*stream_pixels(load_dataset_folder("hf-hub:someone/dicom").paths)])
    np.testing.assert_allclose(pixels[0], preprocess(image), atol=0.02)


@pytest.mark.parametrize("folder", ["{label}", "train/{label} fracture"])
@pytest.mark.parametrize("names", [("0.png", "1.dcm"), ("0.dcm", "1.dcm"), ("0.png", "1")])
def test_load_dataset_folder_of_hub_class_folders_reads_dicom_and_the_manifest(hub, folder, names):
    files, rows = {"README.md": b"---\nlicense: mit\n---\n"}, ["path,source_group"]
    for label in ("Spiral", "Oblique"):
        image = synthetic_radiograph(label, width=64, height=96)
        for name in names:
            path = f"{folder.format(label=label)}/{name}"
            files[path] = encode_image(image) if name.endswith("png") else dicom(np.asarray(image))
            rows.append(f"{path},{name}")
    files["manifest.csv"] = "\n".join(rows).encode()
    repo = "someone/" + "".join(filter(str.isalnum, folder + "".join(names)))
    hub.add(repo, files, kind="datasets")
    images = load_dataset_folder(f"hf-hub:{repo}")
    assert images.labels.tolist() == [7, 7, 9, 9] and images.hub == repo
    assert images.grouped_by == "source_group" and images.groups.tolist() == [0, 1, 0, 1]
    first, second, *_ = stream_pixels(images.paths)
    np.testing.assert_allclose(first, second, atol=0.02)


def test_resolve_dataset_with_image_folder_of_datasets_keeps_dicom_files(tmp_path):
    image = synthetic_radiograph("Spiral", width=64, height=96)
    names = ["a.dcm", "IM000001", "b.png"]
    for name in names[:2]:
        (tmp_path / name).write_bytes(dicom(np.asarray(image)))
    image.save(tmp_path / "b.png")
    rows = ["file_name,label", *(f"{name},Spiral" for name in names)]
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    pixels = np.stack([*stream_pixels(load_dataset_folder(tmp_path).paths)])
    assert len(pixels) == 3
    np.testing.assert_allclose(pixels, np.stack([preprocess(image)] * 3), atol=0.02)


def test_resolve_dataset_with_malformed_hub_reference_raises_invalid_data(hub):
    hub.requests.clear()
    with pytest.raises(InvalidData, match=r'"images" is not a Hub dataset\. Write it as "hf-hub:owner/name"'):
        resolve_dataset("hf-hub:images")
    assert not hub.requests


def test_resolve_dataset_with_missing_hub_dataset_tells_how_to_log_in(hub):
    with pytest.raises(InvalidData, match=r"Cannot download the dataset someone/nothing.*hf auth login"):
        resolve_dataset("hf-hub:someone/nothing")


def test_resolve_dataset_without_image_column_names_the_columns(hub):
    hub.add("someone/text", {"data.csv": b"text\nhello\n"}, kind="datasets")
    with pytest.raises(InvalidData, match="lacks the columns image and label; it has text"):
        resolve_dataset("hf-hub:someone/text")


def test_resolve_dataset_with_path_as_label_raises_unknown_label(hub):
    data = parquet([{"image": encode_image(synthetic_radiograph("Spiral")), "label": "../../outside"}])
    hub.add("someone/strange", {"data/train-00000.parquet": data}, kind="datasets")
    with pytest.raises(UnknownLabel, match="outside"):
        resolve_dataset("hf-hub:someone/strange")


def test_resolve_dataset_with_image_folder_of_datasets_reads_its_metadata(dataset_folder, tmp_path):
    rows = ["file_name,label"]
    for i, path in enumerate(sorted(dataset_folder.rglob("*.png"))):
        shutil.copy(path, tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{path.parent.parent.name}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    images = load_dataset_folder(tmp_path)
    assert images.fingerprint == load_dataset_folder(dataset_folder).fingerprint and images.hub is None


def test_resolve_dataset_with_damaged_metadata_raises_invalid_data(tmp_path):
    (tmp_path / "metadata.csv").write_text("nothing\n1\n")
    synthetic_radiograph("Spiral").save(tmp_path / "1.png")
    with pytest.raises(InvalidData, match=r"cannot read .* as an image folder"):
        resolve_dataset(tmp_path)


def test_resolve_dataset_from_kaggle_unwraps_the_folder(dataset_folder, tmp_path, monkeypatch):
    shutil.copytree(dataset_folder, tmp_path / "archive" / "bones")
    (tmp_path / ".complete").touch()
    client = SimpleNamespace(dataset_download=lambda name: str(tmp_path))
    monkeypatch.setitem(sys.modules, "kagglehub", client)
    assert resolve_dataset("kaggle:someone/bones") == tmp_path / "archive" / "bones"


def test_resolve_dataset_from_kaggle_that_fails_tells_what_to_set(monkeypatch):
    def fail(name):
        raise RuntimeError("403 Forbidden\nmore")

    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(dataset_download=fail))
    with pytest.raises(InvalidData, match=r"bones from Kaggle \(403 Forbidden\)\. Set KAGGLE_USERNAME"):
        resolve_dataset("kaggle:someone/bones")


def test_resolve_dataset_from_kaggle_without_client_tells_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(InvalidData, match="pip install kagglehub"):
        resolve_dataset("kaggle:someone/bones")
