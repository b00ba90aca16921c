"""`fracture predict SOURCE --out DIR`: what it writes, resuming, and wrong usage."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

import fracture_lib
from fracture_lib.cli import main
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.labels import LABEL2ID
from fracture_lib.models import onnx

ROOT = Path(__file__).parent.parent.parent
ONE_MODEL = ["--model", "pytorch-cnn", "--fast"]


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """Restore the number of threads per run, which the command sets for its process."""
    monkeypatch.setattr(onnx, "THREADS", onnx.THREADS)


@pytest.fixture
def scans(tmp_path):
    """A folder with 12 images, of which the last is unreadable, and another file."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(11):
        image = synthetic_radiograph(list(LABEL2ID)[i % 10], i, width=64, height=96)
        image.save(folder / f"{i:02}.png")
    (folder / "11.png").write_bytes(b"text")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def photograph(tmp_path):
    """An image in all colours."""
    path = tmp_path / "photograph.png"
    red = Image.linear_gradient("L")
    Image.merge("RGB", [red, Image.radial_gradient("L"), red.rotate(90)]).save(path)
    return path


def predict(*arguments):
    return main(["predict", *map(str, arguments)])


def parts(out):
    return sorted(out.glob("part-*.parquet"))


def rows(out):
    return [row for path in parts(out) for row in pq.read_table(path).to_pylist()]


def test_out_writes_one_row_per_image_with_the_predictions_of_compare(scans, tmp_path, capsys):
    out = tmp_path / "results"
    assert predict(scans, "--out", out, "--shard-size", 5) == 1
    assert [pq.read_metadata(path).num_rows for path in parts(out)] == [5, 5, 2]
    found = rows(out)
    assert [row["image"] for row in found] == [f"{i:02}.png" for i in range(12)]
    expected = fracture_lib.compare(scans / "03.png")
    row = found[3]
    assert row["status"] == expected.status == "answered" and row["error"] is None
    assert row["warnings"] == list(expected.warnings)
    assert row["ood_score"] == pytest.approx(expected.ood.score, rel=1e-3)
    assert row["fracture"] == expected.fracture.outcome
    assert row["fracture_probability"] == pytest.approx(expected.fracture.probability, abs=1e-4)
    for model, prediction in expected.predictions.items():
        for score in prediction.scores:
            assert row[f"{model}.{score.label}"] == pytest.approx(score.probability, abs=1e-4)
    assert "1 file in" in capsys.readouterr().err.splitlines()[-1]


def test_out_of_an_unreadable_image_has_its_error_and_no_probabilities(scans, tmp_path, capsys):
    out = tmp_path / "results"
    assert predict(scans, "--out", out, *ONE_MODEL) == 1
    row = rows(out)[-1]
    assert row["status"] == "unreadable" and row["error"].startswith("Unsupported file (text).")
    assert row["pytorch-cnn.Spiral"] is None and row["fracture"] is None and row["warnings"] == []
    assert "12 images: 11 answered, 1 unreadable. 1 file in" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["{}", "{}/**/*", "{}/../scans", "file://{}"])
def test_out_inside_its_source_counts_none_of_its_own_files(scans, capsys, source):
    for _ in range(2):
        assert predict(source.format(scans), "--out", scans / "results", *ONE_MODEL) == 1
        assert "12 images: 11 answered, 1 unreadable. 1 file in" in capsys.readouterr().err


def test_out_of_an_image_out_of_distribution_is_rejected_unless_the_check_is_skipped(tmp_path, photograph):
    assert predict(photograph, "--out", tmp_path / "a", *ONE_MODEL) == 1
    [row] = rows(tmp_path / "a")
    assert row["status"] == "rejected" and row["error"].startswith("This does not look like a bone X-ray.")
    assert row["pytorch-cnn.Spiral"] is None and row["ood_score"] is not None
    assert predict(photograph, "--out", tmp_path / "b", *ONE_MODEL, "--skip-ood-check") == 0
    [row] = rows(tmp_path / "b")
    assert row["status"] == "answered" and row["pytorch-cnn.Spiral"] is not None


def test_out_is_a_folder_that_other_tools_read(scans, tmp_path):
    pandas = pytest.importorskip("pandas")
    out = tmp_path / "results"
    predict(scans, "--out", out, *ONE_MODEL, "--shard-size", 5)
    table = pandas.read_parquet(out)
    assert len(table) == 12 and table["pytorch-cnn.Spiral"].notna().sum() == 11
    settings = json.loads(pq.read_metadata(parts(out)[0]).metadata[b"fracture_lib"])
    assert settings["models"] == {"pytorch-cnn": "bundled weights"} and settings["fast"]


def test_out_that_is_complete_classifies_nothing_again(scans, tmp_path):
    out = tmp_path / "results"
    predict(scans, "--out", out, *ONE_MODEL)
    before = {path: path.stat().st_mtime_ns for path in parts(out)}
    assert predict(scans, "--out", out, *ONE_MODEL) == 1
    assert {path: path.stat().st_mtime_ns for path in parts(out)} == before


def test_out_after_a_kill_has_every_image_once_and_keeps_what_was_written(tmp_path, capsys):
    scans, out = tmp_path / "scans", tmp_path / "results"
    scans.mkdir()
    synthetic_radiograph("Spiral", width=64, height=96).save(tmp_path / "x.png")
    for i in range(120):
        shutil.copy(tmp_path / "x.png", scans / f"{i:03}.png")
    arguments = [scans, "--out", out, *ONE_MODEL, "--shard-size", 6]
    process = subprocess.Popen(
        [sys.executable, "-m", "fracture_lib", "predict", *map(str, arguments)],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    while len(parts(out)) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()  # SIGKILL
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in parts(out)}
    assert 3 <= len(before) < 20
    (out / ".part-00019.parquet.0").write_bytes(b"half")  # as the kill may leave
    assert predict(*arguments) == 0
    assert [row["image"] for row in rows(out)] == [f"{i:03}.png" for i in range(120)]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sorted(path.name for path in out.iterdir() if path not in parts(out)) == ["_index.parquet"]
    assert "120 images: 120 answered." in capsys.readouterr().err


@pytest.mark.parametrize("n_bytes", [0, 500])
def test_out_with_a_damaged_part_classifies_it_again(scans, tmp_path, n_bytes):
    out = tmp_path / "results"
    arguments = [scans, "--out", out, *ONE_MODEL, "--shard-size", 5]
    predict(*arguments)
    before = rows(out)
    damaged = parts(out)[1]
    kept = {path: path.stat().st_mtime_ns for path in parts(out) if path != damaged}
    os.truncate(damaged, n_bytes)  # as a full disk or a broken copy may leave
    assert predict(*arguments) == 1
    assert [row["image"] for row in rows(out)] == [row["image"] for row in before]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_out_with_a_damaged_index_is_wrong_usage_and_left_alone(scans, tmp_path, capsys):
    out = tmp_path / "results"
    predict(scans, "--out", out, *ONE_MODEL)
    before = rows(out)
    os.truncate(out / "_index.parquet", 300)
    assert predict(scans, "--out", out, *ONE_MODEL) == 2
    assert "_index.parquet is damaged. Choose a new folder for --out." in capsys.readouterr().err
    assert rows(out) == before


@pytest.mark.skipif(os.name == "nt", reason="another signal there")
def test_out_that_is_interrupted_tells_how_to_resume(tmp_path, scans):
    many = tmp_path / "many.txt"  # minutes of work
    many.write_text(f"{scans / '00.png'}\n" * 5000, encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "fracture_lib", "predict", many, "--out", tmp_path / "results", *ONE_MODEL],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        # A background process, such as these tests may be, ignores the signal, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "results" / "_index.parquet").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    assert "error: Stopped. Run the same command again to resume." in process.communicate()[1]
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--model", "resnet50", "--fast"], "models"), (["--model", "pytorch-cnn"], "fast true")],
)
def test_out_of_a_run_with_other_settings_is_wrong_usage(scans, tmp_path, capsys, arguments, named):
    predict(scans, "--out", tmp_path / "results", *ONE_MODEL)
    assert predict(scans, "--out", tmp_path / "results", *arguments) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert "was begun with other settings: " in err and named in err and err.endswith("folder for --out.")


def test_out_of_a_source_spelled_otherwise_resumes(scans, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(scans.parent)
    for source in ("scans", "./scans/"):
        assert predict(source, "--out", tmp_path / "results", *ONE_MODEL) == 1
    assert "12 images" in capsys.readouterr().err


def test_out_of_a_source_that_has_changed_is_wrong_usage(scans, tmp_path, capsys):
    predict(scans, "--out", tmp_path / "results", *ONE_MODEL)
    before = rows(tmp_path / "results")
    (scans / "00.png").rename(scans / "new.png")
    assert predict(scans, "--out", tmp_path / "results", *ONE_MODEL) == 2
    assert "are not those that" in capsys.readouterr().err
    assert rows(tmp_path / "results") == before


def test_out_that_holds_other_files_is_wrong_usage_and_left_alone(scans, capsys):
    before = sorted(scans.iterdir())
    assert predict(scans, "--out", scans, *ONE_MODEL) == 2
    assert "holds other files" in capsys.readouterr().err
    assert sorted(scans.iterdir()) == before


def test_out_of_a_source_without_images_is_an_error_and_can_be_repeated(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for _ in range(2):
        assert predict(tmp_path / "empty", "--out", tmp_path / "results", *ONE_MODEL) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith("error: There is no image in ")
        assert not (tmp_path / "results").exists()


def test_out_inside_its_source_can_be_resumed(scans, capsys):
    for _ in range(2):
        assert predict(scans, "--out", scans / "results", *ONE_MODEL) == 1
        assert "12 images: 11 answered, 1 unreadable." in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="the file system takes any bytes as a name")
def test_out_of_a_name_that_is_not_text_reads_its_file(tmp_path):
    name = os.fsdecode(b"scan\xff.png")
    (tmp_path / "scans").mkdir()
    synthetic_radiograph("Spiral").save(tmp_path / "scans" / name)
    assert predict(tmp_path / "scans", "--out", tmp_path / "results", *ONE_MODEL) == 0
    [row] = rows(tmp_path / "results")
    assert row["image"] == r"scan\udcff.png" and row["status"] == "answered"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a", "b", "--out", "c"], "--out takes one source"),
        (["a", "--shard-size", "5"], "--shard-size needs --out DIR"),
        (["a", "--engine", "ray"], "--engine needs --out DIR"),
        (["a", "--out", "b", "--address", "c"], "--address needs --engine ray"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(arguments, message, capsys):
    assert predict(*arguments) == 2
    assert f"error: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("output", [["--json"], ["--csv", "x.csv"]])
def test_out_with_another_output_is_wrong_usage(output):
    with pytest.raises(SystemExit, match="2"):
        predict("a", "--out", "b", *output)
