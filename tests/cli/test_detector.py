"""`fracture train-detector`: what it passes on and prints. tests/training has the training itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fracture_lib.cli import main
from fracture_lib.evaluation.detector import measure_detector
from fracture_lib.models.json_files import write_json
from fracture_lib.models.report import Interval, Localization, OutcomeRates
from fracture_lib.registry import DETECTOR
from fracture_lib.training import detector as training

SHARE = Interval(0.5, 0.4, 0.6)


@pytest.fixture
def calls(monkeypatch):
    """The arguments of each training, which is replaced by a made-up report."""
    calls = []

    def train(data, out, pretrained, **options):
        calls.append((data, out, pretrained, options))
        logits = np.random.default_rng(0).normal(size=60)
        fractured = logits + np.random.default_rng(1).normal(size=60) > 0.5
        report = replace(
            measure_detector(logits, fractured, np.arange(60) // 2, "made up"),
            external={"all": OutcomeRates(8, 0.5, 0.25, 0.25)},
            localization={DETECTOR: Localization(9, *[SHARE] * 6)},
        )
        out.mkdir()
        write_json(out / "config.json", {"model_name": DETECTOR})
        report.write(out)
        return report

    monkeypatch.setattr(training, "train_detector", train)
    return calls


def test_train_detector_passes_its_options_prints_the_report_and_writes_a_card(calls, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--data", "FRACATLAS", "--out", str(out), "--pretrained", "FILE", "--external", "BONES"]
    arguments += ["--n-overlays", "7", "--epochs", "2", "--seed", "3", "--keep-checkpoints"]
    assert main(["train-detector", *arguments]) == 0
    assert calls == [
        (
            "FRACATLAS",
            out,
            "FILE",
            {
                "seed": 3,
                "recipe": replace(training.DETECTOR_RECIPE, epochs=2),
                "external": "BONES",
                "n_overlays": 7,
                "keep_checkpoints": True,
            },
        )
    ]
    text = capsys.readouterr().out
    assert text.startswith("60 images in 30 groups, ") and "made up" in text
    assert "  another source, all            visible 50.0 %, uncertain 25.0 %, none 25.0 %, n = 8\n" in text
    assert "    points at a fracture         50.0 % (40.0 to 60.0); centre 50.0 % (40.0 to 60.0); " in text
    assert text.endswith(f"\nWrote the detector to {out} and its card to {out / 'README.md'}.\n")
    assert "detector" in Path(out / "README.md").read_text(encoding="utf-8")


def test_train_detector_uses_the_recipe_and_all_overlays_by_default(calls, tmp_path):
    arguments = ["--data", "FRACATLAS", "--out", str(tmp_path / "out"), "--pretrained", "FILE"]
    assert main(["train-detector", *arguments]) == 0
    options = calls[0][3]
    assert options["recipe"] == training.DETECTOR_RECIPE
    assert options["external"] is options["n_overlays"] is None and not options["keep_checkpoints"]


def test_train_detector_without_weights_exits_with_two(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train-detector", "--data", "FRACATLAS", "--out", str(tmp_path / "out")])
    assert stop.value.code == 2 and "required: --pretrained" in capsys.readouterr().err


def test_train_detector_on_another_folder_is_one_error_line(tmp_path, capsys):
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--pretrained", "FILE"]
    assert main(["train-detector", *arguments]) == 1
    assert "Give the folder of FracAtlas." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
