"""`fracture predict`: inputs, the three output formats, and what is wrong with an image."""

import codecs
import csv
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

import fracture_lib
from fracture_lib.cli import main
from fracture_lib.cli.inputs import find_images
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidImage, ModelUnavailable
from fracture_lib.hub import BUNDLE
from fracture_lib.inference import pipeline as pipeline_module
from fracture_lib.labels import LABEL2ID
from fracture_lib.registry import ALL_MODELS
from tests.helpers.bad_inputs import BAD_FILES
from tests.helpers.dicom_files import dicom

ROOT = Path(__file__).parent.parent.parent
ONE_MODEL = ["--model", "pytorch-cnn"]


@pytest.fixture
def colour_image(tmp_path):
    """An image that is out of distribution."""
    path = tmp_path / "colour.png"
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[..., 0] = np.arange(64) * 4
    pixels[..., 1] = pixels[..., 0].T  # not shades of one colour, as those are read as grey
    Image.fromarray(pixels).save(path)
    return path


def without_times(result):
    for prediction in result.get("predictions", []):
        del prediction["milliseconds"]
    return result


def start(*arguments, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "fracture_lib", "predict", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


# Text


def test_predict_prints_every_model_the_summary_and_the_sources(image_path, capsys):
    assert main(["predict", str(image_path)]) == 0
    out, err = capsys.readouterr()
    name, fracture, *lines, summary = out.splitlines()
    result = fracture_lib.compare(image_path)
    assert name == str(image_path) and fracture == f"  {result.fracture.message}"
    assert [line.split()[0] for line in lines] == list(ALL_MODELS)
    assert all(line.count(" %") == 3 for line in lines)
    assert f"{fracture} {summary.strip()}" == f"  {result.summary}"
    assert err.splitlines() == [
        "pytorch-cnn, tensorflow-cnn, resnet50, ensemble: bundled weights",
        "Not a medical device. The types assume a fracture; a separate detector estimates whether one is "
        "visible, and it misses some.",
        "1 image: 1 answered.",
    ]


def test_predict_text_is_stable(image_path, capsys):
    assert main(["predict", str(image_path), *ONE_MODEL, "--top-k", "1"]) == 0
    prediction = fracture_lib.load_model("pytorch-cnn").predict(image_path)
    expected = f"  pytorch-cnn     {prediction.label} {100 * prediction.probability:.1f} %"
    assert capsys.readouterr().out.splitlines()[2] == expected


def test_predict_fast_answers_from_one_view(image_path, capsys):
    arguments = ["predict", str(image_path), *ONE_MODEL, "--json"]
    assert main([*arguments, "--fast"]) == 0
    fast = json.loads(capsys.readouterr().out)
    expected = fracture_lib.load_model("pytorch-cnn", fast=True).predict(image_path)
    assert fast["predictions"][0]["scores"][0]["probability"] == pytest.approx(expected.probability)
    assert main(arguments) == 0
    slow = json.loads(capsys.readouterr().out)
    assert slow["fracture"] == fast["fracture"] and slow["predictions"] != fast["predictions"]


def test_predict_without_detector_warns_and_prints_the_types(image_path, capsys, monkeypatch):
    def broken():
        raise ModelUnavailable("It is gone.")

    monkeypatch.setattr(pipeline_module, "_load_detector", broken)
    assert main(["predict", str(image_path), *ONE_MODEL]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1].startswith("  pytorch-cnn") and "detector" not in out
    assert f"warning: {image_path}: Could not check whether a fracture is visible: It is gone.\n" in err


@pytest.mark.parametrize("reference", [f"local-dir:{BUNDLE / 'resnet50'}", "ensemble", "resnet50"])
def test_predict_with_one_model_prints_that_model_alone(image_path, capsys, reference):
    assert main(["predict", str(image_path), "--model", reference]) == 0
    out, err = capsys.readouterr()
    name = "ensemble" if reference == "ensemble" else "resnet50"
    assert [line.split()[0] for line in out.splitlines()[2:-1]] == [name]
    source = "local folder resnet50" if "local" in reference else "bundled weights"
    assert err.startswith(f"{name}: {source}\n")


# JSON


def test_json_is_one_object_per_image_and_equals_to_dict(image_path, dataset_folder, capsys):
    other = dataset_folder / "Spiral fracture" / "Train" / "0.png"
    assert main(["predict", str(image_path), str(other), "--json", "--top-k", "2"]) == 0
    out, err = capsys.readouterr()
    results = [json.loads(line) for line in out.splitlines()]
    assert err == "" and [result["image"] for result in results] == [str(image_path), str(other)]
    for path, result in zip((image_path, other), results, strict=True):
        expected = {**fracture_lib.compare(path).to_dict(2), "image": str(path)}
        assert list(result) == list(expected)
        assert without_times(result) == without_times(expected)


def test_json_of_an_unreadable_image_has_its_name_status_and_error(tmp_path, capsys):
    assert main(["predict", str(tmp_path / "none.png"), "--json", *ONE_MODEL]) == 1
    out, err = capsys.readouterr()
    error = "Cannot open 'none.png': No such file or directory."
    assert json.loads(out) == {"image": str(tmp_path / "none.png"), "status": "unreadable", "error": error}
    assert err == f"error: {tmp_path / 'none.png'}: {error}\n1 image: 0 answered, 1 unreadable.\n"


# CSV


def test_csv_to_stdout_has_one_line_per_image_and_model(image_path, tmp_path, capsys):
    assert main(["predict", str(image_path), str(tmp_path / "none.png"), "--csv", "-"]) == 1
    out = capsys.readouterr().out
    assert "\r" not in out and out.startswith("image,")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["model"] for row in rows] == [*ALL_MODELS, ""]
    expected = fracture_lib.compare(image_path).predictions
    for row in rows[:-1]:
        assert row["fracture"] in ("visible", "uncertain", "none")
        assert row["image"] == str(image_path) and row["rank_1"] == expected[row["model"]].label
        assert sum(float(row[label]) for label in LABEL2ID) == pytest.approx(1, abs=0.001)
    assert rows[-1]["image"].endswith("none.png") and "No such file" in rows[-1]["error"]


def test_csv_to_a_file_creates_its_folder_and_leaves_stdout_empty(image_path, tmp_path, capsys):
    path = tmp_path / "new folder" / "results.csv"
    assert main(["predict", str(image_path), str(image_path.parent), *ONE_MODEL, "--csv", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert path.read_bytes().startswith(codecs.BOM_UTF8 + b"image,status,fracture,fracture_probability,model")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [str(image_path)]  # named twice, classified once


@pytest.mark.parametrize(
    "arguments",
    [["--csv", "a.png", "b.png"], ["b.png", "--csv", ""], ["b.png", "--json", "--csv", "-"]],
)
def test_csv_with_an_image_or_no_name_as_its_file_or_with_json_is_wrong_usage(arguments):
    with pytest.raises(SystemExit) as stop:
        main(["predict", *arguments])
    assert stop.value.code == 2


def test_csv_that_cannot_be_written_is_one_error_line(image_path, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["predict", str(image_path), *ONE_MODEL, "--csv", str(tmp_path / "file" / "a.csv")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


# What is wrong with an image


def test_bad_files_are_reported_and_do_not_stop_the_others(image_path, tmp_path, capsys):
    for name, (data, _) in BAD_FILES.items():
        (tmp_path / name).write_bytes(data)
    bad = [str(tmp_path / name) for name in BAD_FILES]
    assert main(["predict", *bad, str(image_path), *ONE_MODEL]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(str(image_path)) and len(out.splitlines()) == 4
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert [line.partition(": ")[2].partition(": ")[0] for line in errors] == bad
    assert main(["predict", *bad, str(image_path), *ONE_MODEL, "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["error" in line for line in lines] == [True] * len(bad) + [False]


def test_image_out_of_distribution_is_an_error_unless_the_check_is_skipped(colour_image, capsys):
    reason = "This does not look like a bone X-ray. It is a colour image; X-rays are greyscale."
    assert main(["predict", str(colour_image), *ONE_MODEL]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"error: {colour_image}: {reason} Use --skip-ood-check to classify it anyway.\n" in err
    assert main(["predict", str(colour_image), *ONE_MODEL, "--skip-ood-check"]) == 0
    out, err = capsys.readouterr()
    assert "pytorch-cnn" in out and f"warning: {colour_image}: {reason}\n" in err


def test_json_of_an_image_out_of_distribution_is_its_result_without_predictions(colour_image, capsys):
    assert main(["predict", str(colour_image), *ONE_MODEL, "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["is_ood"] and result["predictions"] == [] and result["summary"] == ""


def test_model_that_fails_on_an_image_is_an_error_beside_the_other_models(image_path, capsys, monkeypatch):
    from fracture_lib.models.model import Model

    forward = Model.forward

    def fail(model, pixels):
        if model.name == "pytorch-cnn":
            raise ModelUnavailable("ONNX Runtime failed.")
        return forward(model, pixels)

    monkeypatch.setattr(Model, "forward", fail)
    assert main(["predict", str(image_path)]) == 1
    out, err = capsys.readouterr()
    assert "tensorflow-cnn" in out and "pytorch-cnn" not in out
    assert f"error: {image_path}: pytorch-cnn: ONNX Runtime failed.\n" in err


# Wrong usage


def test_unknown_model_exits_with_two_before_any_image_is_read(tmp_path, capsys):
    assert main(["predict", str(tmp_path / "none.png"), "--model", "resnet"]) == 2
    err = capsys.readouterr().err
    assert err.startswith('error: Unknown model "resnet". Did you mean "resnet50"? Choose from pytorch-cnn, ')
    assert err.count("\n") == 1


@pytest.mark.parametrize("k", ["0", "11", "-1", "2.5", "many"])
def test_top_k_out_of_range_exits_with_two(capsys, k):
    with pytest.raises(SystemExit) as stop:
        main(["predict", "none.png", f"--top-k={k}"])
    assert stop.value.code == 2
    assert f'argument --top-k: "{k}" is not a whole number from 1 to 10.' in capsys.readouterr().err


# Inputs


@pytest.fixture
def folder(tmp_path):
    """Images, DICOM files and other files, some of them hidden, on two levels."""
    image = synthetic_radiograph("Spiral", width=64, height=96)
    data = dicom(np.asarray(image))
    root = tmp_path / "folder"
    for name in ("b.png", "a.JPG", "sub/c.tiff", "sub/scan[1].png", ".hidden/d.png", ".e.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(root / name)
    for name in ("f.dcm", "sub/IM0001", "sub/1.2.840.10008"):
        (root / name).write_bytes(data)
    for name in ("notes.txt", "sub/README", "manifest.csv"):
        (root / name).write_text("text, not an image")
    return root


def names(paths, root):
    return [path.relative_to(root).as_posix() for path in paths]


def test_find_images_with_a_folder_searches_it_with_its_subfolders(folder):
    found = names(find_images(str(folder))[0], folder)
    assert sorted(found) == sorted(
        ["a.JPG", "b.png", "f.dcm", "sub/1.2.840.10008", "sub/IM0001", "sub/c.tiff", "sub/scan[1].png"]
    )
    assert found == sorted(found, key=lambda name: Path(name).parts)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.png", ["b.png"]),
        ("?.[JP]*", ["a.JPG"]),
        ("**/*.png", ["b.png", "sub/scan[1].png"]),
        ("s*", ["sub/1.2.840.10008", "sub/IM0001", "sub/c.tiff", "sub/scan[1].png"]),
        ("sub/scan[1].png", ["sub/scan[1].png"]),  # the name of a file, not a pattern
    ],
)
def test_find_images_with_a_pattern_expands_it(folder, pattern, expected):
    assert names(find_images(str(folder / pattern))[0], folder) == expected


def test_find_images_with_a_relative_pattern_returns_relative_paths(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert find_images("*.png") == ([Path("b.png")], 0)
    assert find_images("**/b*")[0] == [Path("b.png")]
    assert find_images(".")[0][0] == Path("a.JPG")


@pytest.mark.parametrize(
    ("argument", "message"), [("*.gif", "No file matches this pattern"), ("empty", "no image in this folder")]
)
def test_find_images_without_a_match_raises_invalid_image(folder, argument, message):
    (folder / "empty").mkdir()
    with pytest.raises(InvalidImage, match=message):
        find_images(str(folder / argument))


def test_predict_with_an_empty_folder_still_classifies_the_others(image_path, tmp_path, capsys):
    assert main(["predict", str(tmp_path), f"{tmp_path}/*.png", str(image_path), *ONE_MODEL]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(str(image_path))
    assert f"error: {tmp_path}: There is no image in this folder. Check the path.\n" in err
    assert f"error: {tmp_path}/*.png: No file matches this pattern. Check the path.\n" in err


def test_predict_with_a_name_that_is_too_long_still_classifies_the_others(image_path, capsys):
    assert main(["predict", 300 * "x", str(image_path), *ONE_MODEL]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(str(image_path)) and "File name too long." in err


def test_find_images_counts_what_is_not_an_image_and_finds_an_image_by_its_bytes(folder):
    (folder / "photo").write_bytes((folder / "a.JPG").read_bytes())
    (folder / "DICOMDIR").write_bytes((folder / "f.dcm").read_bytes())
    (folder / "Thumbs.db").write_bytes(b"hidden, so not counted")
    found, n_left_out = find_images(str(folder))
    assert "photo" in names(found, folder) and "DICOMDIR" not in names(found, folder)
    assert n_left_out == 4  # with a text, a README and a CSV file


@pytest.mark.parametrize("pattern", ["", "**", "**/*", "**/*.png"])
def test_find_images_with_links_to_folders_ends_and_finds_each_file_once(folder, pattern):
    for link in ("loop", "sub/one", "sub/two"):
        (folder / link).symlink_to(folder)
    (folder / "z.png").symlink_to(folder / "b.png")
    found = names(find_images(str(folder / pattern))[0], folder)
    assert found.count("b.png") == 1 and "z.png" not in found
    assert len(found) == len({(folder / name).resolve() for name in found})
    assert "sub/scan[1].png" in found


def test_predict_with_an_empty_argument_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["predict", ""])
    assert stop.value.code == 2 and "it is empty" in capsys.readouterr().err


def test_predict_with_a_zip_classifies_its_members(image_path, tmp_path, capsys):
    path = tmp_path / "scans.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("anna/IM1", "berta/IM1"):
            archive.write(image_path, name)
        archive.writestr("viewer.dll", b"MZ")
    assert main(["predict", str(path), str(image_path), *ONE_MODEL, "--json"]) == 0
    out, err = capsys.readouterr()
    images = [json.loads(line)["image"] for line in out.splitlines()]
    assert images == [f"{path}/anna/IM1", f"{path}/berta/IM1", str(image_path)]
    assert err == f"3 images: 3 answered. 1 file in {path} is not an image and was left out.\n"


def test_predict_with_a_folder_reports_each_zip_without_an_image(image_path, tmp_path, capsys):
    (tmp_path / "damaged.zip").write_bytes(b"PK\3\4")
    for name in ("empty.zip", "other.zip"):
        zipfile.ZipFile(tmp_path / name, "w").close()
    assert main(["predict", str(tmp_path), str(image_path), *ONE_MODEL]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(str(image_path)) and "4 images: 1 answered, 3 unreadable." in err
    assert f"error: {tmp_path}/damaged.zip: The ZIP damaged.zip is damaged." in err
    assert f"error: {tmp_path}/empty.zip: There is no image in the ZIP." in err
    assert f"error: {tmp_path}/other.zip: There is no image in the ZIP." in err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_predict_with_a_pipe_reads_its_image(image_path, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    writer = Thread(target=(tmp_path / "pipe").write_bytes, args=[image_path.read_bytes()])
    writer.start()
    assert main(["predict", str(tmp_path / "pipe"), *ONE_MODEL]) == 0
    writer.join()
    assert "1 image: 1 answered." in capsys.readouterr().err


def test_predict_ends_with_a_tally_that_adds_up(image_path, colour_image, tmp_path, capsys):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"text")
    assert main(["predict", str(image_path), str(colour_image), str(bad), *ONE_MODEL]) == 1
    tally = capsys.readouterr().err.splitlines()[-1]
    assert tally == "3 images: 1 answered, 1 rejected, 1 unreadable."


# A model that cannot be loaded


def test_predict_with_all_models_goes_on_without_a_misconfigured_one(image_path, capsys, monkeypatch):
    monkeypatch.setenv("FRACTURE_HUB_PYTORCH_CNN", "not a repository")
    assert main(["predict", str(image_path), "--json"]) == 1
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert [p["model"] for p in result["predictions"]] == ["tensorflow-cnn", "resnet50"]
    assert list(result["failures"]) == ["pytorch-cnn", "ensemble"]
    assert f"error: {image_path}: pytorch-cnn: FRACTURE_HUB_PYTORCH_CNN is " in err
    assert err.splitlines()[-1] == "1 image: 1 answered."


def test_predict_with_a_misconfigured_model_that_was_chosen_ends_at_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FRACTURE_HUB_PYTORCH_CNN", "not a repository")
    assert main(["predict", str(tmp_path / "none.png"), *ONE_MODEL]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: FRACTURE_HUB_PYTORCH_CNN is ") and err.count("\n") == 1


# Streams


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.parametrize("output", [[], ["--json"], ["--csv", "-"]], ids=["text", "json", "csv"])
def test_name_that_the_console_cannot_print_is_escaped(tmp_path, image_path, output, encoding):
    path = tmp_path / "骨折.png"
    synthetic_radiograph("Spiral").save(path)
    process = start(
        path,
        tmp_path / "骨.png",
        image_path,
        *ONE_MODEL,
        *output,
        PYTHONIOENCODING=encoding,
        PYTHONUTF8="0",
    )
    out, err = (stream.decode(encoding) for stream in process.communicate())
    assert process.returncode == 1 and "Traceback" not in err
    assert r"\u9aa8\u6298.png" in out and image_path.name in out
    assert r"error: " in err and r"\u9aa8.png" in err
    if output == ["--json"]:
        assert json.loads(out.splitlines()[0])["image"] == str(path)


def test_control_characters_of_a_name_are_escaped(tmp_path, capsys):
    path = tmp_path / "a\x1b[31m\nb.png"
    synthetic_radiograph("Spiral").save(path)
    assert main(["predict", str(path), str(tmp_path / "c\r.png"), *ONE_MODEL]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0].endswith(r"a\x1b[31m\nb.png")
    assert r"c\r.png: Cannot open" in err and "\r" not in err


def test_closed_pipe_ends_without_a_traceback(image_path, dataset_folder):
    process = start(image_path, dataset_folder, *ONE_MODEL, "--json")
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    assert process.wait() == 1


def test_predict_with_csv_never_overwrites_an_image(image_path, tmp_path, capsys):
    """As in `--csv *`, where the shell puts the first image, here DICOM without a suffix, in FILE's place."""
    image = tmp_path / "IM0001"
    image.write_bytes(bytes(128) + b"DICM")
    with pytest.raises(SystemExit, match="2"):
        main(["predict", "--csv", str(image), str(image_path)])
    assert image.read_bytes() == bytes(128) + b"DICM"
    assert "exists and is not a CSV file" in capsys.readouterr().err


@pytest.mark.parametrize("start", ["", "image,status,model,rank_1", "image,model,label"])
def test_predict_with_csv_overwrites_a_file_of_this_or_an_earlier_version(image_path, tmp_path, start):
    path = tmp_path / "x.csv"
    path.write_text(start)
    for _ in range(2):
        assert main(["predict", str(image_path), *ONE_MODEL, "--csv", str(path)]) == 0
    assert len(path.read_text().splitlines()) == 2
