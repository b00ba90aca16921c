"""Start and stop the page: what must be set up before Gradio is imported, and serving until a signal.

Nothing here may import Gradio at module level; `main` imports `webui.app` once the process is set up.
"""

import atexit
import ctypes
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path
from threading import Thread

from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware

from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.io.image import MAX_BYTES
from fracture_lib.webui.rendering import CSS, JS
from fracture_lib.webui.server import UPLOAD_PREFIX, RequestGuard, cleanup_loop, lock_upload_dir

__all__ = ["main"]

# Gradio and ONNX Runtime read these when they are imported. Values already in the environment win.
ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",  # no request leaves the page
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9),  # otherwise pandas sums up after each event
    "GRADIO_ANALYTICS_MAX_EVENTS": "100",
}
UPLOAD_VARIABLE = "GRADIO_TEMP_DIR"
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # of malloc.h

# Rules for what lies around the page, since Gradio prefixes those of `css`: narrow margins on narrow screens,
# and an overflow that lets the X-ray stick to the window.
HEAD = """<style>
.gradio-container { overflow: clip !important; }
@media (max-width: 1023px) { .gradio-container > .main { padding-inline: .75rem !important; } }
</style>"""

CONCURRENT_IMAGES = 2  # classified at the same time: a Space has two cores
MAX_WAITING = 32  # requests in the queue; the next one learns at once that the page is busy
MAX_SESSIONS = 200  # whose result is kept, a megabyte each; the least recent must classify again
CLEANUP_INTERVAL, MAX_UPLOAD_AGE = 300, 900  # seconds


def main(fast: bool = False) -> None:
    """Serve the page until SIGINT or SIGTERM arrives; `fast` is that of `InferencePipeline`."""
    _configure_process()
    uploads = _create_upload_dir()
    _lock = lock_upload_dir(uploads)  # held until the process ends
    pipeline = InferencePipeline(fast=fast)
    # Load the models while Gradio is imported, which takes longer; what loading needs is free by then.
    Thread(target=pipeline.warm_up, daemon=True).start()
    _serve(pipeline, uploads)


def _configure_process() -> None:
    """Set environment variables and bound the threads and memory of native libraries."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Gradio calls itself when it starts, for which a proxy is of no use.
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), "localhost,127.0.0.1"]))
    threadpool_limits(1, "blas")  # a second thread would spin on the core of another visitor
    # Otherwise glibc keeps the memory of each image and of each model load: 100 MB more, and growing.
    if mallopt := getattr(ctypes.pythonapi, "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, 2_000_000)
        mallopt(M_ARENA_MAX, 2)


def _create_upload_dir() -> Path:
    """Create a folder for this process's uploads and make Gradio use it.

    All apps on a machine share Gradio's own folder, and each of them serves what is in it.
    """
    folder = Path(tempfile.mkdtemp(prefix=UPLOAD_PREFIX, dir=os.environ.get(UPLOAD_VARIABLE)))
    os.environ[UPLOAD_VARIABLE] = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _serve(pipeline: InferencePipeline, uploads: Path) -> None:
    from fracture_lib.webui import mcp_server
    from fracture_lib.webui.app import THEME, build_page

    signals: list[int] = []  # not an exception, which would be lost if raised in a destructor
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: signals.append(received))
    page = build_page(pipeline)
    cleaning = (uploads, CLEANUP_INTERVAL, MAX_UPLOAD_AGE)
    Thread(target=cleanup_loop, args=cleaning, daemon=True).start()
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=CONCURRENT_IMAGES, api_open=False)
    page.launch(
        theme=THEME,
        css=CSS,
        js=JS,
        head=HEAD,
        ssr_mode=False,
        max_file_size=MAX_BYTES,
        state_session_capacity=MAX_SESSIONS,
        app_kwargs={
            "middleware": [
                Middleware(RequestGuard, upload_dir=uploads),
                Middleware(GZipMiddleware, compresslevel=6),  # Gradio compresses its assets, but not the page
            ],
            **mcp_server.app_options(uploads),
        },
        run_history=False,  # it would keep file names in the browser
        enable_monitoring=False,
        mcp_server=False,  # `webui.mcp_server` replaces Gradio's own
        footer_links=["api", "gradio", "settings"],
        prevent_thread_lock=True,
    )
    while not signals:
        time.sleep(0.1)
    page.close()  # before the upload folder is deleted
