"""What a user installs: the pins, the sdist and wheel, and the wheel in an environment with nothing else."""

import ast
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fracture_lib

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PYPROJECT["project"]["optional-dependencies"]
# CUDA packages that torch pins itself and that .ci/lock leaves out.
EXCLUDED = set(PYPROJECT["tool"]["uv"]["exclude-dependencies"])
WEIGHTS_NOT_SHIPPED = {"model.keras", "model.safetensors", "out_of_fold.safetensors"}
SERVING = "requirements-serving.txt"
PYPI_LIMIT = 100 * 2**20  # bytes per file


# Pins


def read_pins(*paths: str) -> list[Requirement]:
    lines = [line for path in paths for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if re.match(r"\w", line)]


def applies(requirement: Requirement, extra: str = "") -> bool:
    return not requirement.marker or requirement.marker.evaluate({"extra": extra})


def installed_dependencies(requirement: Requirement, found: set[str]) -> set[str]:
    """Add to `found` the names of `requirement` and of all that it brings on this platform."""
    found.add(canonicalize_name(requirement.name))
    for extra in ("", *requirement.extras):
        for text in metadata.requires(requirement.name) or []:
            child = Requirement(text)
            name = canonicalize_name(child.name)
            if applies(child, extra) and name not in found | EXCLUDED:
                installed_dependencies(child, found)
    return found


@pytest.mark.parametrize(
    ("paths", "extras"),
    [
        (["requirements.txt"], ["app", "train", "hub"]),
        ([SERVING], ["app"]),
        (["requirements.txt", "tests/requirements.txt"], ["app", "train", "hub", "dev"]),
    ],
    ids=["requirements", "serving", "tests"],
)
def test_requirement_files_pin_every_installed_dependency(paths: list[str], extras: list[str]) -> None:
    pins = [pin for pin in read_pins(*paths) if applies(pin)]
    direct = [*PYPROJECT["project"]["dependencies"], *(text for extra in extras for text in EXTRAS[extra])]
    found: set[str] = set()
    for requirement in map(Requirement, direct):
        if applies(requirement):
            installed_dependencies(requirement, found)
    assert found == {canonicalize_name(pin.name) for pin in pins}
    installed = {pin.name: metadata.version(pin.name).split("+")[0] for pin in pins}
    assert installed == {pin.name: str(pin.specifier).removeprefix("==") for pin in pins}


def test_requirement_files_hold_exact_pins_only() -> None:
    for path in ("requirements.txt", SERVING, "tests/requirements.txt"):
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        others = [line for line in lines if line and not re.match(r"\s*#|[\w.-]+==[\w.]+( ; |$)", line)]
        assert others == (["-r ../requirements.txt"] if path.startswith("tests") else [])


def test_requirement_files_satisfy_pyproject() -> None:
    pins = {pin.name: pin for pin in read_pins("requirements.txt", "tests/requirements.txt")}
    assert not EXCLUDED & pins.keys()
    pinned_extras = [text for name, extra in EXTRAS.items() if name != "kaggle" for text in extra]
    for requirement in map(Requirement, [*PYPROJECT["project"]["dependencies"], *pinned_extras]):
        (specifier,) = pins[canonicalize_name(requirement.name)].specifier
        assert specifier.version in requirement.specifier, f"{requirement}: run .ci/lock"


def test_serving_requirements_are_a_part_of_all_without_the_frameworks() -> None:
    serving, everything = (set(map(str, read_pins(path))) for path in (SERVING, "requirements.txt"))
    assert serving < everything
    names = {Requirement(pin).name for pin in everything - serving}
    assert {"torch", "tensorflow", "keras", "transformers"} <= names


def imported_packages(folder: Path) -> set[str]:
    """Return the top-level names that the modules in `folder` import, without the standard library's."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - sys.stdlib_module_names - {"fracture_lib"}


def test_pyproject_declares_every_imported_package() -> None:
    texts = [*PYPROJECT["project"]["dependencies"], *(text for extra in EXTRAS.values() for text in extra)]
    declared = {canonicalize_name(Requirement(text).name) for text in texts}
    distributions = metadata.packages_distributions()
    names = imported_packages(ROOT / "fracture_lib") - {"google"}  # google.colab, which Colab alone has
    undeclared = {
        name
        for name in names
        if not declared & {canonicalize_name(d) for d in distributions.get(name, [name])}
    }
    assert undeclared == set()


# Distributions


def test_citation_names_the_version_and_licence_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == fracture_lib.__version__
    assert citation["license"] == PYPROJECT["project"]["license"]


def build(source: Path, out: Path, *targets: str) -> None:
    options = [option for target in targets for option in ("--target", target)]
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(out), *options]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and the wheel of the working tree."""
    out = tmp_path_factory.mktemp("dist")
    build(ROOT, out, "sdist", "wheel")
    return out


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    return next(distributions.glob("*.whl"))


def names_in_wheel(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_wheel_holds_the_package_and_what_serves(wheel: Path) -> None:
    assert wheel.name == f"fracture_classification-{fracture_lib.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < PYPI_LIMIT
    names = names_in_wheel(wheel)
    package = {name for name in names if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "fracture_lib").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name not in WEIGHTS_NOT_SHIPPED
    }
    assert package == expected | {"fracture_lib/model_card.md"}
    assert "fracture_lib/py.typed" in package
    assert {Path(name).suffix for name in package} >= {".py", ".html", ".css", ".js", ".onnx", ".json"}


@pytest.mark.slow
def test_wheel_metadata_names_licence_extras_and_command(wheel: Path) -> None:
    (distribution,) = metadata.distributions(path=[str(wheel)])
    assert distribution.metadata["License-Expression"] == "Apache-2.0"
    assert distribution.metadata.get_all("License-File") == ["LICENSE"]
    assert set(distribution.metadata.get_all("Provides-Extra") or []) == EXTRAS.keys()
    assert [point.name for point in distribution.entry_points] == ["fracture"]


@pytest.mark.slow
def test_sdist_builds_the_same_wheel(distributions: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    names = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert {"README.md", "LICENSE", "pyproject.toml", "model_card.md", "app.py"} <= names
    assert not {name for name in names if Path(name).name in WEIGHTS_NOT_SHIPPED}
    assert not {name for name in names if "cache" in name or name.startswith((".venv", ".git/", "dist"))}
    build(source, tmp_path, "wheel")
    assert names_in_wheel(next(tmp_path.glob("*.whl"))) == names_in_wheel(wheel)


# Installation


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts folder of a new environment that holds the wheel and its base dependencies alone."""
    venv = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=60)
    folder = venv / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "python"), "install", "--quiet"]
    command = [*pip, "--constraint", str(ROOT / "requirements.txt"), str(wheel)]
    subprocess.run(command, check=True, timeout=300)
    return folder


def run(command: list[str | Path], cwd: Path) -> str:
    """Return what `command` prints, run in `cwd` without this repository on its path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and not k.startswith("FRACTURE_")}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_installed_wheel_classifies_an_image_without_the_extras(
    scripts: Path, image_path: Path, tmp_path: Path
) -> None:
    code = f"""
import json, fracture_lib
from importlib.util import find_spec
score = fracture_lib.load_model("resnet50").predict({str(image_path)!r}, top_k=3).scores[0]
frameworks = ["torch", "tensorflow", "keras", "transformers", "datasets", "gradio", "scipy"]
print(json.dumps({{
    "file": fracture_lib.__file__,
    "version": fracture_lib.__version__,
    "frameworks": [name for name in frameworks if find_spec(name)],
    "label": score.label,
    "probability": score.probability,
}}))
"""
    found = json.loads(run([scripts / "python", "-c", code], tmp_path))
    expected = fracture_lib.load_model("resnet50").predict(image_path, top_k=3).scores[0]
    assert Path(found["file"]).is_relative_to(scripts.parent)
    assert found["version"] == fracture_lib.__version__ and found["frameworks"] == []
    assert found["label"] == expected.label
    assert found["probability"] == pytest.approx(expected.probability, abs=1e-4)


@pytest.mark.slow
def test_installed_command_classifies_an_image(scripts: Path, image_path: Path, tmp_path: Path) -> None:
    options: list[str | Path] = ["--model", "resnet50", "--top-k", "3", "--json"]
    (line,) = run([scripts / "fracture", "predict", image_path, *options], tmp_path).splitlines()
    (answer,) = json.loads(line)["predictions"]
    expected = fracture_lib.load_model("resnet50").predict(image_path, top_k=3).scores[0]
    assert answer["model"] == "resnet50" and len(answer["scores"]) == 3
    assert answer["scores"][0]["label"] == expected.label
    assert answer["scores"][0]["probability"] == pytest.approx(expected.probability, abs=1e-4)
