import shutil

import numpy as np
import pytest

from fracture_lib.data.fracatlas import FINDINGS, load_fracatlas
from fracture_lib.errors import InvalidData

HEADER = "path,label,region,view,boxes,source_group\n"
ROW = "images/0.png,fractured,hand,frontal,[],0\n"
OTHER = "images/1.png,not fractured,leg,lateral,[],1\n"


def test_load_fracatlas_reads_findings_groups_and_boxes(fracatlas_folder):
    atlas = load_fracatlas(fracatlas_folder)
    assert len(atlas.paths) == 24 and all(path.is_file() for path in atlas.paths)
    assert atlas.findings.shape == (24, len(FINDINGS)) and atlas.findings.dtype == np.float32
    found = [{name for name, x in zip(FINDINGS, row, strict=True) if x} for row in atlas.findings[:2]]
    assert found == [{"fractured", "leg", "frontal"}, {"hand", "frontal", "lateral"}]
    assert atlas.fractured.sum() == 8 and atlas.groups.tolist() == [i // 2 for i in range(24)]
    assert [boxes.shape for boxes in atlas.boxes[:2]] == [(1, 4), (0, 4)]
    np.testing.assert_allclose(atlas.boxes[0], [[0.2, 0.4, 0.8, 0.6]])


def test_load_fracatlas_of_changed_manifest_has_another_fingerprint(fracatlas_folder, tmp_path):
    copy = shutil.copytree(fracatlas_folder, tmp_path / "copy")
    original = load_fracatlas(fracatlas_folder).fingerprint
    assert load_fracatlas(str(copy)).fingerprint == original
    manifest = copy / "manifest.csv"
    manifest.write_text(manifest.read_text().replace("hand", "shoulder"))
    assert load_fracatlas(copy).fingerprint != original


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: .*Give the folder of FracAtlas"),
        (b"\xff\xfe\x00", "cannot be read: .*Give the folder of FracAtlas"),
        ("", "lists no images"),
        (HEADER, "lists no images"),
        ("path,label\na.png,fractured\n", "lacks the columns region, view, boxes, source_group"),
        (HEADER + ROW + "images/1.png,not fractured\n", "line 3: .*Correct the row"),
        (HEADER + ROW + OTHER.replace("[]", "[0.1"), "line 3: .*Correct the row"),
        (HEADER + ROW + OTHER.replace("[]", '"[0.1, 0.2, 0.3]"'), "line 3: .*Correct the row"),
        (HEADER + ROW + OTHER.replace(",1\n", ",one\n"), "line 3: invalid literal .*'one'.* Correct"),
        (HEADER + ROW, "needs images with and without fractures"),
        (HEADER + OTHER, "needs images with and without fractures"),
    ],
    ids=range(11),
)
def test_load_fracatlas_with_bad_manifest_raises_one_clear_sentence(tmp_path, content, message):
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "manifest.csv").write_bytes(data)
    with pytest.raises(InvalidData, match=message) as caught:
        load_fracatlas(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path / "manifest.csv") in str(caught.value)


def test_load_fracatlas_with_byte_order_mark_reads_it(tmp_path):
    (tmp_path / "manifest.csv").write_text(HEADER + ROW + OTHER, encoding="utf-8-sig")
    assert load_fracatlas(tmp_path).paths == (tmp_path / "images/0.png", tmp_path / "images/1.png")
