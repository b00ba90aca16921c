"""The real page in a process of its own."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
STARTUP_TIMEOUT = 240  # seconds, for a busy machine


@contextmanager
def running_app(
    log: Path,
    folder: Path = ROOT,
    command: Sequence[str] = ("app.py",),
    python: str | Path = sys.executable,
    **environment: str,
) -> Iterator[str]:
    """Yield the URL of `python app.py`, started in `folder`; its log must hold no traceback at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as out:
        app = subprocess.Popen(
            [python, *command],
            cwd=folder,
            env={**os.environ, "GRADIO_SERVER_PORT": str(port), **environment},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + STARTUP_TIMEOUT
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert app.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield url
    finally:
        app.terminate()
        app.wait()
    assert "Traceback" not in log.read_text()
