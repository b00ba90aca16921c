"""The parser, exit codes, error lines, logging and help of the whole command line."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fracture_lib
from fracture_lib.cli import main
from fracture_lib.errors import (
    InvalidArgument,
    InvalidData,
    InvalidImage,
    InvalidModel,
    ModelUnavailable,
    PushError,
    UnknownLabel,
    UnknownModel,
)

ROOT = Path(__file__).parent.parent.parent
COMMANDS = [
    "predict",
    "app",
    "evaluate",
    "pretrain",
    "train",
    "ensemble",
    "remeasure",
    "train-detector",
    "fit-ood",
    "cards",
    "push",
]
PUSH_COMMANDS = ["model", "dataset", "space"]
RUN_MAIN = "import sys; from fracture_lib.cli import main; sys.exit(main(sys.argv[1:]))"
ALL_COMMANDS = [[name] for name in COMMANDS[:-1]] + [["push", name] for name in PUSH_COMMANDS]


@pytest.fixture(autouse=True)
def terminal_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def print_help(capsys, *command):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def listed_commands(text):
    return re.findall(r"^    ([a-z-]+)(?: |$)", text.partition("COMMAND\n")[2], re.MULTILINE)


def run_python(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


# Help


@pytest.mark.parametrize(("group", "expected"), [([], COMMANDS), (["push"], PUSH_COMMANDS)])
def test_help_lists_every_command(capsys, group, expected):
    assert listed_commands(print_help(capsys, *group)) == expected


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=" ".join)
def test_help_of_a_command_shows_the_default_of_every_option_and_examples(capsys, command):
    text = print_help(capsys, *command)
    options = text.partition("options:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^  (-.*?)(?=^  -|\Z)", options, re.MULTILINE | re.DOTALL)
    for entry in entries:
        entry = " ".join(entry.split())
        assert "(default: " in entry or "(required)" in entry or entry.startswith("-h, --help"), entry
    assert re.search(rf"examples:\n  .*fracture {' '.join(command)}", text)
    assert max(map(len, text.partition("options:\n")[0].splitlines())) < 80


@pytest.mark.parametrize("group", [[], ["push"]], ids=["fracture", "push"])
def test_group_without_a_command_prints_its_help_and_succeeds(capsys, group):
    expected = print_help(capsys, *group)
    assert main(group) == 0
    assert capsys.readouterr().out == expected


def test_version_is_that_of_the_library(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"fracture {fracture_lib.__version__}\n"


# Exit codes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predct"], "invalid choice: 'predct'"),
        (["predict"], 'the following arguments are required: IMAGE. See "fracture predict --help".'),
        (["predict", "a.png", "--runtime", "tf"], "argument --runtime: invalid choice: 'tf'"),
        (["predict", "a.png", "--colour"], "unrecognized arguments: --colour"),
        (["train", "--model", "vgg", "--data", "a", "--out", "b"], "argument --model: invalid choice: 'vgg'"),
        (["train", "--model", "resnet50"], "the following arguments are required: --data, --out"),
        (["push", "model", "--folder", "resnet50"], 'required: --repo. See "fracture push model --help".'),
    ],
)
def test_wrong_usage_exits_with_two_and_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnknownModel("Unknown model."), 2),
        (InvalidArgument("seed is -1; use 0 or more."), 2),
        (InvalidImage("The image is blank."), 1),
        (InvalidData("No images."), 1),
        (InvalidModel("Incomplete."), 1),
        (ModelUnavailable("Cannot download."), 1),
        (PushError("Nothing was changed."), 1),
        (UnknownLabel("Unknown class."), 1),
        (OSError("No space left on device"), 1),
        (KeyboardInterrupt(), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_of_a_command_becomes_one_line_and_an_exit_code(capsys, monkeypatch, error, code):
    def fail(options):
        raise error

    monkeypatch.setattr("fracture_lib.cli.cards.run", fail)
    assert main(["cards"]) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {str(error) or 'Stopped.'}\n")


def test_os_error_names_its_file(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("fracture_lib.cli.cards.run", lambda options: (tmp_path / "none").read_bytes())
    assert main(["cards"]) == 1
    error = f"error: No such file or directory: {tmp_path / 'none'}. Check the path"
    assert capsys.readouterr().err.startswith(error)


def test_stopped_training_says_how_to_resume(capsys, monkeypatch, tmp_path):
    def stop(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("fracture_lib.cli.train.run_train", stop)
    assert main(["train", "--model", "resnet50", "--data", "a", "--out", str(tmp_path)]) == 1
    expected = "error: Stopped. The same command resumes from the last checkpoint.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("gradio", ["app"], "app"),
        ("pyarrow", ["predict", "DATA", "--out", "OUT"], "bulk"),
        ("fsspec", ["predict", "memory://x", "--out", "OUT"], "bulk"),
        ("ray", ["predict", "FLAT", "--out", "OUT", "--engine", "ray"], "ray"),
        ("torch", ["predict", "DATA", "--model", "pytorch-cnn", "--runtime", "native"], "train"),
        ("imagehash", ["evaluate", "--model", "pytorch-cnn", "--data", "FLAT"], "train"),
        ("sklearn", ["train", "--model", "pytorch-cnn", "--data", "DATA", "--out", "OUT"], "train"),
        ("datasets", ["evaluate", "--model", "pytorch-cnn", "--data", "hf-hub:owner/name"], "hub"),
        ("jinja2", ["push", "model", "--folder", "pytorch-cnn", "--repo", "someone/x", "--dry-run"], "hub"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_missing_package_names_the_extra_that_installs_it(
    dataset_folder, tmp_path, package, arguments, extra
):
    (tmp_path / "flat" / "Spiral").mkdir(parents=True)  # without a manifest, so images are hashed
    source = dataset_folder / "Spiral fracture" / "Train" / "0.png"
    (tmp_path / "flat" / "Spiral" / "0.png").write_bytes(source.read_bytes())
    paths = {"DATA": dataset_folder, "FLAT": tmp_path / "flat", "OUT": tmp_path / "out"}
    done = run_python(
        f"import sys; sys.modules[{package!r}] = None; {RUN_MAIN}",
        *(paths.get(argument, argument) for argument in arguments),
    )
    message = f'needs {package}. Run: pip install "fracture-classification[{extra}]"'
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr


def test_import_error_of_the_library_itself_is_raised(monkeypatch):
    monkeypatch.setitem(sys.modules, "fracture_lib.publishing.cards", None)
    with pytest.raises(ImportError, match=r"fracture_lib\.publishing\.cards"):
        main(["cards"])


# Streams


def test_module_and_console_script_are_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "fracture_lib", "predict", "none.png"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stdout == ""
    assert "error: none.png: Cannot open 'none.png': No such file or directory." in done.stderr


@pytest.mark.parametrize(
    ("flags", "level"), [([], "WARNING"), (["-v"], "INFO"), (["-vv"], "DEBUG"), (["-v", "-v"], "DEBUG")]
)
def test_verbose_sets_the_level_of_the_library_logger(monkeypatch, flags, level):
    monkeypatch.setattr("fracture_lib.cli.cards.run", lambda options: 0)
    logger = logging.getLogger("fracture_lib")
    monkeypatch.setattr(logger, "level", logger.level)
    assert main(["cards", *flags]) == 0
    assert logging.getLevelName(logger.level) == level


def test_verbose_logs_progress_to_stderr_and_details_with_a_traceback(image_path, tmp_path):
    done = run_python(RUN_MAIN, "-v", "predict", image_path, "--json", "--model", "pytorch-cnn")
    assert done.stderr == f"INFO: Classifying {image_path}\n" and done.stdout.count("\n") == 1
    done = run_python(RUN_MAIN, "predict", image_path, "-vv", "--model", f"local-dir:{tmp_path}")
    assert done.stderr.startswith("DEBUG: ") and "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_help_imports_no_framework():
    code = "import sys; from fracture_lib.cli import main; main([]); print(*sys.modules, file=sys.stderr)"
    heavy = {"gradio", "plotly", "torch", "tensorflow", "keras", "sklearn", "scipy", "datasets", "IPython"}
    assert not heavy & set(run_python(code).stderr.split())
