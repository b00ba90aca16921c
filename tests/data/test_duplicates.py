import numpy as np
import pytest
from PIL import Image, ImageOps

from fracture_lib.data.duplicates import have_near_duplicates, near_duplicate_groups, perceptual_hashes
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidData

ORIGINAL = synthetic_radiograph("Spiral")
COPIES = {
    "same": ORIGINAL,
    "flipped": ImageOps.mirror(ORIGINAL),
    "upside down": ImageOps.flip(ORIGINAL),
    "rotated": ORIGINAL.rotate(90, expand=True),
    "transposed": ORIGINAL.transpose(Image.Transpose.TRANSPOSE),
    "smaller": ORIGINAL.resize((120, 180)),
    "brighter": ORIGINAL.point(lambda v: min(255, v + 20)),
    "inverted": ImageOps.invert(ORIGINAL.convert("L")),
}


@pytest.mark.parametrize("name", COPIES)
def test_near_duplicate_groups_of_a_copy_share_a_number(name, tmp_path):
    paths = [tmp_path / "original.png", tmp_path / "copy.png"]
    ORIGINAL.save(paths[0])
    COPIES[name].save(paths[1])
    groups = near_duplicate_groups(paths)
    assert groups.dtype == np.int64 and groups[0] == groups[1]


def test_near_duplicate_groups_of_a_jpeg_copy_share_a_number(tmp_path):
    paths = [tmp_path / "original.png", tmp_path / "copy.jpg"]
    ORIGINAL.save(paths[0])
    ORIGINAL.save(paths[1], quality=60)
    assert len(set(near_duplicate_groups(paths))) == 1


def test_near_duplicate_groups_of_different_images_differ(tmp_path):
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 255, (6, 6), np.uint8))
        coarse.resize((96, 96), Image.Resampling.BICUBIC).save(path)
    assert len(set(near_duplicate_groups(paths))) == 6


def test_near_duplicate_groups_joins_a_chain_and_counts_groups_from_the_first_image(tmp_path, monkeypatch):
    hashes = [np.full(8, value, np.uint64) for value in (0, 0x0F0F0F0F0F0F0F0F, 0xFFF, 0x3F)]
    monkeypatch.setattr("fracture_lib.data.duplicates.map_images", lambda *_: hashes)
    groups = near_duplicate_groups([tmp_path / f"{i}.png" for i in range(4)])
    assert groups.tolist() == [0, 1, 0, 0]  # 12 bits lie between the first and the third, 6 from the last


@pytest.mark.parametrize("name", COPIES)
def test_have_near_duplicates_finds_a_copy_and_no_other_image(name, tmp_path):
    paths = [tmp_path / "copy.png", tmp_path / "other.png"]
    COPIES[name].save(paths[0])
    synthetic_radiograph("Greenstick").save(paths[1])
    ORIGINAL.save(tmp_path / "original.png")
    hashes = perceptual_hashes([tmp_path / "original.png"])
    assert (hashes.shape, hashes.dtype) == ((1, 8), np.uint8)
    assert have_near_duplicates(paths, hashes).tolist() == [True, False]


def test_near_duplicate_groups_with_unreadable_image_raises_invalid_data(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InvalidData, match=r"^broken\.png cannot be read: .*Replace or remove it\.$"):
        near_duplicate_groups([tmp_path / "broken.png"])
