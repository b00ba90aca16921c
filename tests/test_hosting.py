"""The page in a container and in a Space: what they install, in a new environment of their Python."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from huggingface_hub import RepoCard
from playwright.sync_api import expect

import fracture_lib
from fracture_lib.hub import NOT_SERVED
from fracture_lib.publishing.push import collect_space_files
from tests.helpers import browser as chromium
from tests.helpers.app_runner import running_app

ROOT = Path(__file__).parent.parent
FRAMEWORKS = ["torch", "tensorflow", "keras", "transformers", "datasets", "scipy"]


def read_dockerfile() -> list[tuple[str, str]]:
    """Return the (instruction, arguments) of the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, arguments.strip()) for name, _, arguments in (line.partition(" ") for line in lines)]


def ignored_names() -> list[str]:
    """Return the names of files and folders that .dockerignore leaves out."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("**/") for line in lines if not line.startswith("#")]


class Container(NamedTuple):
    """What the Dockerfile builds, without Docker."""

    app: Path  # its working directory
    python: Path
    environment: dict[str, str]
    command: list[str]
    health_check: list[str]


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Container:
    """Run the Dockerfile's commands in a new environment of its Python."""
    folder = tmp_path_factory.mktemp("container")
    app, binaries = folder / "app", folder / "venv" / "bin"
    app.mkdir()
    steps = read_dockerfile()
    last = dict(steps)
    _make_environment(last["FROM"].replace(":", "").removesuffix("-slim"), binaries.parent)
    variables = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": ""}
    for instruction, arguments in steps:
        if instruction == "COPY":
            source, target = arguments.split()
            if (ROOT / source).is_dir():
                ignore = shutil.ignore_patterns(*ignored_names())
                shutil.copytree(ROOT / source, app / target, ignore=ignore)
            else:
                shutil.copy(ROOT / source, app / target)
                (app / source).chmod(0o600)  # as in a checkout with a strict umask
        elif instruction == "RUN" and not arguments.startswith("useradd"):  # that changes this machine
            subprocess.run(arguments, shell=True, cwd=app, env=variables, check=True, timeout=600)
    return Container(
        app,
        binaries / "python",
        environment=dict(setting.split("=", 1) for setting in shlex.split(last["ENV"])),
        command=json.loads(last["CMD"]),
        health_check=json.loads(last["HEALTHCHECK"].partition("CMD")[2]),
    )


def _make_environment(python: str, folder: Path) -> None:
    """Make an empty environment of `python`, such as "python3.12", or skip the test."""
    if python == f"python{sys.version_info.major}.{sys.version_info.minor}":
        python = sys.executable
    if not shutil.which(python) or subprocess.run([python, "-m", "venv", folder]).returncode:
        pytest.skip(f"needs {python} with venv")


def test_dockerfile_runs_as_another_user_than_root() -> None:
    steps = read_dockerfile()
    user = dict(steps)["USER"]
    assert int(user) > 0, "Kubernetes wants a number"
    assert ("RUN", f"useradd --create-home --uid {user} page") in steps
    names = [name for name, _ in steps]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name in {"RUN", "COPY"})


def test_dockerignore_leaves_out_what_is_not_served() -> None:
    assert set(ignored_names()) >= NOT_SERVED | {"__pycache__"}


def test_space_and_dockerfile_use_the_same_python_and_requirements() -> None:
    files = collect_space_files("someone/space")
    header = RepoCard(files["README.md"].decode()).data.to_dict()
    steps = read_dockerfile()
    assert dict(steps)["FROM"] == f"python:{header['python_version'].rpartition('.')[0]}-slim"
    assert ("COPY", f"{files['requirements.txt'].name} .") in steps


@pytest.mark.slow
def test_container_is_healthy_while_it_runs(container: Container, tmp_path: Path) -> None:
    python, *command = container.command
    assert python == "python"
    assert not [path for path in container.app.rglob("*") if path.name in NOT_SERVED]
    assert all(path.stat().st_mode & 0o004 for path in container.app.rglob("*")), "readable by the user"
    # A proxy, as Docker sets from its own configuration, that nothing listens to
    environment = {**container.environment, "http_proxy": "http://127.0.0.1:9", "PYTHONPATH": ""}
    del environment["GRADIO_SERVER_PORT"]  # `running_app` chooses a free one
    check = [container.python, *container.health_check[1:]]
    with running_app(tmp_path / "log.txt", container.app, command, container.python, **environment) as url:
        environment["GRADIO_SERVER_PORT"] = url.rpartition(":")[2]
        subprocess.run(check, env=environment, check=True)
    assert subprocess.run(check, env=environment, capture_output=True).returncode


@pytest.mark.browser
@pytest.mark.slow
def test_pushed_space_classifies_an_image_in_the_browser_with_its_requirements_alone(
    container: Container, image_path: Path, tmp_path: Path
) -> None:
    find = f"from importlib.util import find_spec; print([n for n in {FRAMEWORKS} if find_spec(n)])"
    found = subprocess.run([container.python, "-c", find], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
    space = tmp_path / "space"
    for path, content in collect_space_files("someone/space").items():
        (space / path).parent.mkdir(parents=True, exist_ok=True)
        (space / path).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    with (
        running_app(tmp_path / "log.txt", space, python=container.python, PYTHONPATH="") as url,
        chromium.launch() as browser,
    ):
        page = browser.new_page()
        page.goto(url)
        page.locator("#single-xray input[type=file]").first.set_input_files(image_path)
        answer = fracture_lib.compare(image_path)
        expect(page.locator("#matrix tbody tr")).to_have_count(5, timeout=90_000)
        expect(page.get_by_role("status").filter(has_text=answer.fracture.message)).to_have_count(1)
