"""The rules of ARCHITECTURE.md that a machine can check."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import fracture_lib

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "fracture_lib"

# Bottom first. A module imports only from its own package and from lower layers.
LAYERS = (
    {"errors", "registry"},
    {"hub", "io", "labels"},
    {"data", "models"},
    {"inference"},
    {"evaluation"},
    {"publishing", "training", "webui"},
    {"cli", "notebook"},
)
# Which module or package may import a framework, at any depth of the code.
FRAMEWORK_MODULES = {
    "gradio": {"webui"},
    "plotly": {"webui.plots"},
    "pydicom": {"io.dicom"},
    "torch": {"models.efficientnet", "models.pytorch", "models.transformers"},
    "tensorflow": set(),
    "keras": {"models.keras_networks"},
    "transformers": {"models.transformers"},
    "onnxruntime": {"models.onnx", "models.onnx_export"},
    "ray": {"inference.bulk_ray"},
    "IPython": {"notebook"},
}


def module_name(path: Path) -> str:
    name = path.relative_to(LIBRARY).with_suffix("").as_posix().replace("/", ".")
    return name.removesuffix("__init__").rstrip(".")


MODULES = {module_name(path): path for path in sorted(LIBRARY.rglob("*.py"))}
ENTRY_POINTS = {"", "__main__"}  # the public API and `python -m fracture_lib` stand above all layers


def imports(path: Path) -> Iterator[str]:
    """Yield the full names that a module imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(path: Path) -> set[str]:
    """The modules of this library that a module imports."""
    found = set()
    for name in imports(path):
        if name.startswith("fracture_lib."):
            name = name.removeprefix("fracture_lib.")
            found.add(name if name in MODULES else name.rpartition(".")[0])
    return found


def package(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("module", MODULES.keys() - ENTRY_POINTS)
def test_module_imports_only_lower_layers_and_its_own_package(module):
    layer = {name: i for i, names in enumerate(LAYERS) for name in names}
    for imported in imported_modules(MODULES[module]):
        assert package(imported) == package(module) or layer[package(imported)] < layer[package(module)], (
            f"{module} imports {imported}"
        )


def test_modules_import_each_other_without_a_cycle():
    TopologicalSorter({module: imported_modules(path) for module, path in MODULES.items()}).prepare()


def test_layers_name_every_package_and_no_other():
    assert set.union(*LAYERS) == {package(module) for module in MODULES.keys() - ENTRY_POINTS}


@pytest.mark.parametrize("module", MODULES)
def test_framework_is_imported_only_by_its_own_module(module):
    top_level = {name.partition(".")[0] for name in imports(MODULES[module])}
    for framework, allowed in FRAMEWORK_MODULES.items():
        parents = {module, module.rpartition(".")[0], package(module)}
        assert framework not in top_level or allowed & parents, framework


@pytest.mark.parametrize("path", sorted((ROOT / "tests").rglob("test_*.py")), ids=lambda path: path.stem)
def test_test_module_imports_no_other_test_module(path):
    for name in imports(path):
        assert not re.search(r"(^|\.)test_\w+(\.|$)|(^|\.)conftest(\.|$)", name), name


def test_every_public_name_exists():
    assert sorted(set(fracture_lib.__all__)) == sorted(fracture_lib.__all__)
    assert all(hasattr(fracture_lib, name) for name in fracture_lib.__all__)


def run_python(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_importing_the_library_imports_nothing_heavy():
    heavy = {
        *FRAMEWORK_MODULES,
        "huggingface_hub",
        "datasets",
        "jinja2",
        "pyarrow",
        "scipy",
        "sklearn",
        "tqdm",
    }
    assert not heavy & set(run_python("import sys, fracture_lib; print(*sys.modules)"))


def test_importing_the_library_leaves_the_import_system_alone():
    assert run_python(
        "import sys; before = list(sys.meta_path); import fracture_lib; print(before == sys.meta_path)"
    ) == ["True"]


def test_serving_imports_no_training_framework(image_path):
    code = (
        "import sys, fracture_lib\n"
        f"fracture_lib.compare({str(image_path)!r})\n"
        f"for name in fracture_lib.MODELS: fracture_lib.load_model(name).predict({str(image_path)!r})\n"
        "print(*sys.modules)"
    )
    assert not {"torch", "tensorflow", "keras", "transformers", "scipy", "gradio"} & set(run_python(code))
