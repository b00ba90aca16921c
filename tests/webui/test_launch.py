"""Importing, starting and stopping the page."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.app_runner import running_app

ROOT = Path(__file__).parent.parent.parent


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["app", "launch"])
def test_import_of_webui_module_leaves_the_environment_unchanged(module):
    code = f"""
import os, signal
{"import gradio" if module == "app" else ""}
before = dict(os.environ), signal.getsignal(signal.SIGTERM)
import fracture_lib.webui.{module}
assert (dict(os.environ), signal.getsignal(signal.SIGTERM)) == before
"""
    run_python(code)


def test_import_of_launch_imports_no_gradio():
    assert run_python("import sys, fracture_lib.webui.launch; print('gradio' in sys.modules)") == "False\n"


def test_main_configures_the_process_before_gradio_is_imported(tmp_path):
    code = f"""
import os, sys
from threadpoolctl import threadpool_info
from fracture_lib.webui import launch
os.environ["GRADIO_TEMP_DIR"] = {str(tmp_path)!r}
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "7"
def serve(pipeline, uploads):
    assert not {{"gradio", "onnxruntime"}} & set(sys.modules)
    assert str(uploads) == os.environ["GRADIO_TEMP_DIR"] and uploads.parent == launch.Path({str(tmp_path)!r})
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] == "7", "a setting of the user"
    assert {{pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}} <= {{1}}
    print("served", len(pipeline.views))
launch._serve = serve
launch.InferencePipeline.warm_up = lambda self: None
launch.main(fast=True)
"""
    assert run_python(code) == "served 1\n"


@pytest.mark.slow
def test_page_starts_where_a_proxy_is_set(tmp_path):
    """Gradio calls itself, where no proxy can help."""
    proxy = "http://127.0.0.1:9"  # nothing listens there
    with running_app(tmp_path / "log.txt", http_proxy=proxy, no_proxy="example.org"):
        pass


@pytest.mark.slow
def test_page_stopped_while_it_starts_leaves_no_folder_and_no_traceback(tmp_path):
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    # The page answers before Gradio has finished launching it. `running_app` looks for a traceback.
    with running_app(tmp_path / "log.txt", GRADIO_TEMP_DIR=str(uploads)):
        pass
    assert list(uploads.iterdir()) == []
