"""`fracture fit-ood`: what it prints and writes."""

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from fracture_lib.cli import main
from fracture_lib.models.report import OODReport


def test_fit_ood_prints_the_rates_and_writes_the_detector(dataset_folder, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    (tmp_path / "others" / "colour noise").mkdir(parents=True)
    for name, pixels in zip("abc", noise, strict=True):  # three sources
        Image.fromarray(pixels).save(tmp_path / "others" / "colour noise" / f"{name}.png")
    out = tmp_path / "detector"
    arguments = ["--data", str(dataset_folder), "--others", str(tmp_path / "others"), "--out", str(out)]
    assert main(["fit-ood", *arguments]) == 0
    text = capsys.readouterr().out
    report = OODReport.read(out)
    rate = report.detection["colour noise"]
    assert text.startswith("40 X-rays in 40 groups; ") and rate.value == 1
    assert f"  X-rays rejected             {report.false_rejection.percent()}\n" in text
    assert f"  colour noise detected       {rate.percent()}, n = 3\n" in text
    assert text.endswith(f"\nWrote the detector to {out}.\n")
    tensors = load_file(out / "discriminant.safetensors")
    n_features = len(tensors["mean"])
    assert tensors["whitening"].shape == (n_features, n_features) and len(tensors["direction"]) == n_features


def test_fit_ood_without_out_exits_with_two_and_keeps_the_bundled_detector(dataset_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit-ood", "--data", str(dataset_folder), "--others", str(tmp_path)])
    assert stop.value.code == 2 and "required: --out" in capsys.readouterr().err


def test_fit_ood_without_other_images_is_one_error_line(dataset_folder, tmp_path, capsys):
    arguments = ["--data", str(dataset_folder), "--others", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(["fit-ood", *arguments]) == 1
    assert capsys.readouterr().err.startswith("error: There are no folders of images in ")
    assert not (tmp_path / "out").exists()
