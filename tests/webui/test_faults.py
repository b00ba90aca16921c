"""Faults from outside a running page: too little memory, a full disk, a killed process."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.app_client import App, part
from tests.helpers.app_runner import running_app
from tests.helpers.images import encode_image
from tests.helpers.resource_limits import full_disk, memory_left

pytestmark = pytest.mark.slow


@contextmanager
def start_app(uploads: Path) -> Iterator[tuple[App, int]]:
    """Yield a page of its own that keeps its uploads below a folder, and its process id."""
    uploads.mkdir(exist_ok=True)
    pid_file, log = uploads.parent / "pid.txt", uploads.parent / "log.txt"
    code = f"import os, pathlib; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))"
    code += "; from fracture_lib.webui.launch import main; main()"
    folders = {"GRADIO_TEMP_DIR": str(uploads), "TMPDIR": str(uploads.parent)}  # a kill leaves files in both
    with running_app(log, command=["-c", code], **folders) as url:
        yield App(url, uploads, log), int(pid_file.read_text())


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> Iterator[tuple[App, int]]:
    with start_app(tmp_path_factory.mktemp("app") / "uploads") as app_and_pid:
        yield app_and_pid


def compare(app: App, image: Any, endpoint: str = "compare") -> tuple[str, Any]:
    return app.call(endpoint, [image, 3, False])


def test_page_with_too_little_memory_for_an_image_says_so_and_answers_the_next(started, image_path):
    app, pid = started
    pixels = np.tile(np.arange(250, dtype=np.uint8), (6000, 24))
    large = encode_image(Image.fromarray(pixels), compress_level=0)
    assert compare(app, app.upload_file("image.png", image_path.read_bytes()))[0] == "complete"
    with memory_left(100_000_000, pid):
        for _ in range(2):
            event, answer = compare(app, app.upload_file("large.png", large))
            assert event == "error" and "needs more memory than is available" in answer["error"]
            assert compare(app, app.upload_file("image.png", image_path.read_bytes()))[0] == "complete"


def test_upload_to_a_full_disk_gets_507_and_the_next_arrives(started, image_path):
    app, pid = started
    before = app.files()
    with full_disk(500, pid):
        status, answer = app.upload(part("image.png", os.urandom(3_000_000)))
    assert status == 507 and "no room for uploads" in answer
    # The start of the file stays until it expires: Gradio deletes it for its own errors only.
    assert before <= app.files() and sum(path.stat().st_size for path in app.files() - before) <= 500
    assert compare(app, app.upload_file("image.png", image_path.read_bytes()))[0] == "complete"


def test_deleted_upload_folder_expires_the_uploads_and_the_next_arrives(started, image_path):
    app, _ = started
    content = image_path.read_bytes()
    uploaded = app.upload_file("image.png", content)
    for folder in app.uploads.iterdir():
        shutil.rmtree(folder)
    for endpoint, image in (("compare", uploaded), ("predict_batch", [uploaded])):
        event, answer = compare(app, image, endpoint)
        assert event == "error" and "pload it again" in answer["error"], endpoint
    uploaded = app.upload_file("image.png", content)
    assert compare(app, uploaded)[0] == "complete"


def test_page_killed_during_a_batch_harms_no_other_and_the_next_deletes_its_uploads(tmp_path, image_path):
    uploads = tmp_path / "uploads"
    content = image_path.read_bytes()
    with (
        start_app(uploads) as (killed, pid),
        running_app(tmp_path / "other.txt", GRADIO_TEMP_DIR=str(uploads)) as url,
    ):
        other = App(url, uploads)
        kept = other.upload_file("image.png", content)
        batch = [killed.upload_file(f"{i}.png", content) for i in range(200)]
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(compare, killed, batch, "predict_batch")
            time.sleep(1)
            assert not answer.done()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises((HTTPException, OSError)):
                answer.result()
        assert compare(other, kept)[0] == "complete"
        assert Path(batch[0]["path"]).exists()
        with running_app(tmp_path / "next.txt", GRADIO_TEMP_DIR=str(uploads)):
            assert not Path(batch[0]["path"]).exists()
        assert compare(other, kept)[0] == "complete"
