import json
import subprocess
import sys
from pathlib import Path

import pytest
from bad_images import BAD_FILES

from fracture_lib.__main__ import main

ROOT = Path(__file__).parent.parent


def test_predict_names_every_model_and_its_source(film, capsys):
    assert main(["predict", str(film)]) == 0
    out, err = capsys.readouterr()
    lines = [line.split("\t") for line in out.splitlines()]
    assert [line[1] for line in lines] == ["pytorch-cnn", "tensorflow-cnn", "resnet50"]
    for _, _, answer, source in lines:
        assert answer.count("%") == 3 and source == "[bundled with the app]"
    assert "Not a medical device" in err


def test_json_is_one_object_a_line(film, capsys):
    assert main(["predict", str(film), "--model", "resnet50", "--top-k", "10", "--json"]) == 0
    (answer,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert answer["image"] == str(film) and answer["model"] == "resnet50"
    assert sum(s["probability"] for s in answer["scores"]) == pytest.approx(1)


def test_bad_files_are_named_and_do_not_stop_the_others(film, tmp_path, capsys):
    bad = []
    for name, (data, _) in BAD_FILES.items():
        bad.append(tmp_path / name)
        bad[-1].write_bytes(data)
    arguments = ["predict", *map(str, bad), str(film), "--model", "pytorch-cnn"]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out.startswith(str(film)) and len(out.splitlines()) == 1
    for path in bad:
        assert f"error: {path}: " in err
    assert main([*arguments, "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [("error" in line) for line in lines] == [True] * len(bad) + [False]


def test_a_wrong_model_or_k_is_one_sentence(film, capsys):
    assert main(["predict", str(film), "--model", "resnet"]) == 1
    assert capsys.readouterr().err.startswith('error: "resnet" is no model')
    assert main(["predict", str(film), "--top-k", "0"]) == 1
    assert "from 1 to 10" in capsys.readouterr().err


def test_wrong_usage_exits_with_two():
    for arguments in ([], ["predict"], ["train", "--model", "vgg", "--data", "a", "--out", "b"]):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2


def test_evaluate_writes_the_report(film_folder, tmp_path, capsys):
    out = tmp_path / "new folder" / "report.json"
    arguments = ["evaluate", "--model", "pytorch-cnn", "--data", str(film_folder), "--out", str(out)]
    assert main([*arguments, "--split", "Train"]) == 0
    report = json.loads(out.read_text())
    assert report["n"] == 40 and report["data"]["split"] == "Train"
    assert set(report["metrics"]) == {
        "accuracy",
        "top3_accuracy",
        "macro_f1",
        "balanced_accuracy",
        "macro_auroc",
        "negative_log_likelihood",
        "brier",
        "expected_calibration_error",
    }
    assert f"accuracy                     {report['metrics']['accuracy']['value']}" in capsys.readouterr().out
    assert main([*arguments, "--split", "Test"]) == 1
    assert "expected <class>/<split>/film.jpg" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_one_sentence(film_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    arguments = ["--data", str(film_folder), "--out", str(tmp_path / "file" / "out")]
    assert main(["evaluate", "--model", "pytorch-cnn", *arguments]) == 1
    assert main(["train", "--model", "pytorch-cnn", *arguments]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("error: [Errno") for line in errors) == 2


def test_a_real_process_gives_a_sentence_not_a_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fracture_lib", "predict", tmp_path / "none.png"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "No such file" in done.stderr
