"""What stands between the page and the web: open routes, request limits, headers and the upload folder.

Gradio opens many routes that this page does not need, and keeps some uploads for good.
"""

import logging
import shutil
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from os import PathLike
from pathlib import Path

from filelock import FileLock
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fracture_lib.errors import FractureError

__all__ = [
    "API",
    "BATCH_QUEUE",
    "DISK_FULL",
    "FILE_ROUTE",
    "IMAGE_QUEUE",
    "INTERNAL_ERROR",
    "INVALID_REQUEST",
    "MAX_BODY",
    "MAX_MCP_BODY",
    "MCP_ROUTE",
    "NOT_AN_UPLOAD",
    "UPLOAD_PREFIX",
    "RequestGuard",
    "check_not_expired",
    "cleanup_loop",
    "delete_expired",
    "lock_upload_dir",
]

logger = logging.getLogger(__name__)

# Gradio's concurrency ids: a single image does not wait behind a batch.
IMAGE_QUEUE, BATCH_QUEUE = "image", "batch"

MAX_BODY = 4_000_000  # bytes of a request other than an upload; the paths of 200 images take a tenth of it
# MCP clients show a tool's message but not that of a 413, so tools reject requests that are a little larger.
MAX_MCP_BODY = 8_000_000
RESERVED_DISK = 1_000_000_000  # bytes that uploads leave free
UPLOAD_PREFIX = "uploads-"  # of each process's own upload folder
LOCK_FILE = ".lock"

API = "/gradio_api/"
FILE_ROUTE, UPLOAD_ROUTE, MCP_ROUTE = f"{API}file=", f"{API}upload", f"{API}mcp"
# The routes that browsers, gradio_client and MCP need. All others, such as a proxy and a video editor, are
# closed and answer 404.
OPEN_ROUTES = {"/", "/config", "/theme.css", "/manifest.json", "/robots.txt", "/favicon.ico"}
OPEN_API_ROUTES = {
    *("info", "openapi.json", "app_id", "theme.css", "startup-events", "upload", "upload_progress"),
    *("queue/join", "queue/data", "queue/status", "cancel", "reset", "mcp"),
}
OPEN_PREFIXES = (
    *("/assets/", "/static/", "/svelte/"),
    *(f"{API}call/", f"{API}heartbeat/", FILE_ROUTE),
)

DISK_FULL = "The server has no room for uploads. Try again in 20 minutes."
NOT_AN_UPLOAD = "The file is not an upload to this page, or it has expired. Upload it again."
INTERNAL_ERROR = "Something went wrong on our side. Try again, or report it."
INVALID_REQUEST = "Invalid request. /gradio_api/info lists the endpoints and their parameters."
NO_UPLOAD_DIR = "The server cannot store uploads at the moment. Try again later."

HEADERS = {
    # A Space is embedded in a frame of huggingface.co, and on other sites in one of *.hf.space.
    "Content-Security-Policy": "frame-ancestors 'self' https://huggingface.co https://*.hf.space; "
    "base-uri 'self'; object-src 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # the addresses of uploads contain file names
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
}


class RequestGuard:
    """ASGI middleware: closes routes, limits sizes, adds headers and answers failures with a message."""

    def __init__(self, app: ASGIApp, upload_dir: Path) -> None:
        self.app = app
        self.upload_dir = upload_dir

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path: str = scope["path"]
        n_received = 0
        started = False  # whether the response has begun

        async def receive_checked() -> Message:
            nonlocal n_received
            message = await receive()
            n_received += len(message.get("body", b""))
            self._check_size(path, n_received)
            return message

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            if not _is_open(path):
                raise HTTPException(404, "Not found.")
            if scope["method"] == "POST":
                _create_upload_dir(self.upload_dir)
            self._check_size(path, int(Headers(scope=scope).get("content-length", 0)))
            await self.app(scope, receive_checked, send_with_headers)
        except Exception as error:  # Gradio raises many types for requests it does not expect
            if not started:  # otherwise the server closes the connection
                reply = _to_http(error, path)
                response = JSONResponse({"detail": reply.detail}, reply.status_code)
                await response(scope, receive, send_with_headers)
            elif not isinstance(error, HTTPException):
                _log_failure(error)

    def _check_size(self, path: str, size: int) -> None:
        """Raise HTTPException if a request of `size` bytes, so far, is too large."""
        limit = MAX_MCP_BODY if path.rstrip("/") == MCP_ROUTE else MAX_BODY
        if _is_upload(path):  # Gradio limits each file of an upload
            if shutil.disk_usage(self.upload_dir).free < RESERVED_DISK:
                raise HTTPException(507, DISK_FULL)
        elif size > limit:
            raise HTTPException(413, f"The request is too large; the limit is {limit // 10**6} MB.")


def _create_upload_dir(folder: Path) -> None:
    """Create the upload folder again if something else, such as a cleaner of /tmp, has deleted it.

    Raises FractureError if that fails.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FractureError(NO_UPLOAD_DIR) from error


def _is_open(path: str) -> bool:
    if path.startswith(f"{FILE_ROUTE}http"):
        return False  # Gradio would fetch that address and pass the content on
    name = path.removeprefix(API).rstrip("/")
    return path in OPEN_ROUTES or name in OPEN_API_ROUTES or path.startswith(OPEN_PREFIXES)


def _is_upload(path: str) -> bool:
    return path.rstrip("/") == UPLOAD_ROUTE


def _to_http(error: Exception, path: str) -> HTTPException:
    if isinstance(error, HTTPException):
        return error
    _log_failure(error)
    if isinstance(error, FractureError):
        return HTTPException(503, str(error))
    if isinstance(error, OSError) and _is_upload(path):
        return HTTPException(507, DISK_FULL)
    return HTTPException(400, INVALID_REQUEST)


def _log_failure(error: Exception) -> None:
    logger.error("A request failed: %s", type(error).__name__)  # not its message, which may name a file


def lock_upload_dir(folder: Path) -> FileLock:
    """Lock an upload folder while this process lives; delete its neighbours whose process was killed."""
    lock = FileLock(folder / LOCK_FILE)
    lock.acquire()
    for other in folder.parent.glob(f"{UPLOAD_PREFIX}*/{LOCK_FILE}"):
        with suppress(OSError), FileLock(other, blocking=False):  # fails while the other process lives
            shutil.rmtree(other.parent)
    return lock


def delete_expired(folder: Path, max_age: float, keep: Collection[Path] = frozenset()) -> None:
    """Delete what in `folder` last changed more than `max_age` seconds ago, except the paths in `keep`."""
    for path in sorted(folder.rglob("*"), reverse=True):  # files before the folder that contains them
        with suppress(OSError):  # already gone, or a folder that is not empty
            # abs: after the clock is set back, do not keep a file until its time comes again
            if path not in keep and abs(time.time() - path.lstat().st_ctime) > max_age:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def cleanup_loop(folder: Path, interval: float, max_age: float) -> None:
    """Run `delete_expired` every `interval` seconds, forever; keep what is in `folder` now."""
    keep = set(folder.rglob("*"))
    while True:
        time.sleep(interval)
        delete_expired(folder, max_age, keep)


def check_not_expired(paths: Iterable[str | PathLike[str]]) -> None:
    """Raise FractureError if one of the uploaded files has been deleted on schedule."""
    if not all(Path(path).exists() for path in paths):
        raise FractureError("Your upload has expired. Please upload it again.")
