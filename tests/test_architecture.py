"""The rules of ARCHITECTURE.md that a machine can hold."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "fracture_lib").rglob("*.py"))

# A framework and the modules that may import it, at any depth of the code.
HOME = {
    "gradio": {
        "page/one_film.py",
        "page/many_films.py",
        "page/about_models.py",
        "page/endpoints.py",
        "page/server.py",
    },
    "plotly": {"page/figures.py"},
    "pydicom": {"dicom.py"},
    "gdcm": set(),
    "torch": {"backends/pytorch.py", "backends/transformers.py"},
    "tensorflow": set(),
    "keras": {"backends/keras.py"},
    "transformers": {"backends/transformers.py"},
    "onnxruntime": {"backends/onnx.py"},
    "IPython": {"notebook.py"},
}

# Rooms, from the ground up. A module imports only from its own floor or those below it.
FLOORS = (
    {"errors", "labels", "dicom"},
    {"augment", "robustness", "preprocess", "registry", "maps", "metrics", "drawing"},
    {"config", "data", "recipes", "hub", "sources"},
    {"backends.onnx", "cards"},
    {"backends.pytorch", "backends.keras", "backends.transformers", "publish"},
    {"classifier"},
    {"evaluation", "ensemble", "refusal", "panel"},
    {"training", "batch", "page.views", "page.figures"},
    {
        "__main__",
        "notebook",
        "page.one_film",
        "page.many_films",
        "page.about_models",
        "page.endpoints",
        "page.server",
    },
)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def name_of(path):
    return path.relative_to(ROOT / "fracture_lib").with_suffix("").as_posix().replace("/", ".")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_its_own_module_imports_a_framework(path):
    relative = path.relative_to(ROOT / "fracture_lib").as_posix()
    used = {name.split(".")[0] for name in imports(path)}
    for framework, homes in HOME.items():
        assert framework not in used or relative in homes


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__init__.py"], ids=name_of)
def test_imports_go_down(path):
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    for imported in imports(path):
        if imported in ("fracture_lib.backends", "fracture_lib.page"):
            continue  # `from fracture_lib.backends import onnx`: the package itself is empty
        if imported.startswith("fracture_lib."):
            assert floor[imported.removeprefix("fracture_lib.")] <= floor[name_of(path)]


def run_python(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_library_is_light():
    """By what it imports: how long that takes is the machine's affair."""
    heavy = {*HOME, "huggingface_hub", "datasets", "jinja2", "scipy", "sklearn", "IPython"}
    assert not heavy & set(run_python("import sys, fracture_lib; print(*sys.modules)"))


@pytest.mark.parametrize(
    "code",
    [
        "import fracture_lib, transformers",
        "import transformers, fracture_lib",
        "import fracture_lib; from transformers.models import auto",
        "import fracture_lib, importlib.util as util; util.find_spec('transformers'); import transformers",
        "import fracture_lib, concurrent.futures as f; f = f.ThreadPoolExecutor(8)\n"
        "list(f.map(__import__, ['transformers'] * 8)); import transformers",
    ],
    ids=["before", "after", "submodule", "looked for", "threads"],
)
def test_whoever_imports_transformers_has_our_classes_registered_once(tmp_path, code):
    """On a package of that name that counts; test_publish has the real one."""
    (tmp_path / "transformers" / "models" / "auto").mkdir(parents=True)
    (tmp_path / "transformers" / "__init__.py").write_text("done, ready = [], True")
    stub = (
        "import sys, types\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "ours = sys.modules['fracture_lib.backends.transformers'] = types.ModuleType('ours')\n"
        "ours.register = lambda: sys.modules['transformers'].done.append(sys.modules['transformers'].ready)\n"
    )
    assert run_python(f"{stub}{code}\nprint(sys.modules['transformers'].done)") == ["[True]"]


def test_serving_a_visitor_imports_no_framework(film):
    code = (
        "import sys, fracture_lib\n"
        f"for name in fracture_lib.MODELS: fracture_lib.load(name).predict({str(film)!r})\n"
        "print(*sys.modules)"
    )
    assert not {"torch", "tensorflow", "keras", "transformers"} & set(run_python(code))
