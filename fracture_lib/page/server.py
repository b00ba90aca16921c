"""What stands between the page and the web: which routes are open, how much a request may hold, what is kept.

Gradio opens many routes that this page has no use for, fetches addresses that it is given as files, prints
what it was given when it fails, and keeps some uploads for good.
"""

import shutil
import sys
import time
import traceback
from contextlib import suppress
from urllib.parse import unquote

import gradio as gr
from filelock import FileLock
from gradio.blocks import BlocksConfig
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

__all__ = ["Page", "claim", "guard", "keep_clean", "sweep"]

MAX_BODY = 4_000_000  # bytes of any other request; the paths of 200 films are a tenth of it
RESERVE = 1_000_000_000  # bytes of disk that uploads leave free

API = "/gradio_api/"
FILE, UPLOAD = f"{API}file=", f"{API}upload"
# What a browser, gradio_client and MCP ask for. Everything else, such as a proxy and a video editor, answers
# as if it were not there.
OPEN = {"/", "/config", "/theme.css", "/manifest.json", "/robots.txt", "/favicon.ico"}
OPEN_API = {"info", "openapi.json", "app_id", "theme.css", "startup-events", "upload", "upload_progress"}
OPEN_API |= {"queue/join", "queue/data", "queue/status", "cancel", "reset", "mcp"}
OPEN_FOLDERS = ("/assets/", "/static/", "/svelte/", f"{API}call/", f"{API}heartbeat/", f"{API}mcp/", FILE)
OPEN_FOLDERS += (f"{API}run/",)  # for examples that are picked; app.py has Gradio refuse all else there

FULL = "There is no room for uploads now: try again in twenty minutes."
UNFIT = "This is not what can be asked: /gradio_api/info lists it, with the inputs of each."
FAILED = "Something went wrong here, not with the film: try again, or report it."

HEADERS = {
    # A Space is shown in a frame of huggingface.co, and by others in one of *.hf.space.
    "Content-Security-Policy": "frame-ancestors 'self' https://huggingface.co https://*.hf.space; "
    "base-uri 'self'; object-src 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # addresses of uploads hold their names
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
}


def guard(app):
    """Wrap the ASGI `app`: closed routes, limits of size, headers, and a sentence for what it fails on."""

    async def guarded(scope, receive, send):
        if scope["type"] != "http":
            return await app(scope, receive, send)
        path, received, answered = scope["path"], 0, False

        def check(size):
            if path.rstrip("/") == UPLOAD:  # Gradio measures each file of it
                if shutil.disk_usage(gr.utils.get_upload_folder()).free < RESERVE:
                    raise HTTPException(507, FULL)
            elif size > MAX_BODY:
                raise HTTPException(413, f"The request is too large: send at most {MAX_BODY // 10**6} MB.")

        async def counted():
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            check(received)
            return message

        async def with_headers(message):
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            if not _is_open(path):
                raise HTTPException(404, "There is nothing here.")
            check(int(Headers(scope=scope).get("content-length", 0)))
            await app(scope, counted, with_headers)
        except Exception as error:
            if not isinstance(error, HTTPException):
                print("A request failed:", type(error).__name__, file=sys.stderr)
                full = isinstance(error, OSError) and path.rstrip("/") == UPLOAD
                error = HTTPException(507, FULL) if full else HTTPException(400, UNFIT)
            if not answered:  # else the server cuts the answer off
                answer = JSONResponse({"detail": error.detail}, error.status_code)
                await answer(scope, receive, with_headers)

    return guarded


def _is_open(path):
    if path.startswith(f"{FILE}http"):
        return False  # Gradio would fetch that address and pass it on
    return path in OPEN or path.removeprefix(API).rstrip("/") in OPEN_API or path.startswith(OPEN_FOLDERS)


class _Config(BlocksConfig):
    """What a page is made of, of which each session has a copy.

    Gradio writes down the settings of all components for each, 150 kB in 10 ms, to make deep links of, whose
    route is closed; and each call of a program is a session.
    """

    def __copy__(self):
        session = super().__copy__()
        session.config_for_block = lambda *_: {}
        return session


class Page(gr.Blocks):
    """Blocks that fetch no address, name no film in the log and keep no session that ends with its call."""

    def __init__(self, **options):
        super().__init__(**options)
        self.default_config = _Config(self)
        self._ended = set()  # calls that were sessions of their own, until somebody has fetched the answer

    async def preprocess_data(self, block_fn, inputs, *rest, **options):
        try:
            inputs = traverse(inputs, _not_fetched, is_file_obj_with_meta)
            return await super().preprocess_data(block_fn, inputs, *rest, **options)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:  # Gradio's own sentences hold what was given
            raise gr.Error(UNFIT, print_exception=False) from error

    async def process_api(self, *arguments, **options):
        try:
            return await super().process_api(*arguments, **options)
        except gr.Error:
            raise
        except Exception as error:
            trace = traceback.format_tb(error.__traceback__)
            print("Traceback, without the message:", *trace, type(error).__name__, file=sys.stderr)
            raise gr.Error(FAILED, print_exception=False) from error
        finally:
            event = options.get("event_id")
            if event and event == options.get("session_hash"):  # it named no session, so nobody comes back
                self._forget(event)

    def _forget(self, session):
        """Drop a session that has ended, and of those before it what the queue keeps beyond their answers."""
        self.state_holder.session_data.pop(session, None)
        self.state_holder.time_last_used.pop(session, None)
        self._ended.add(session)
        waiting, messages = self._queue.pending_event_ids_session, self._queue.pending_messages_per_session
        # The queue forgets the messages of all but the latest sessions by itself.
        for ended in [s for s in self._ended if not waiting.get(s) or s not in messages]:
            self._ended.remove(ended)
            waiting.pop(ended, None)
            messages.pop(ended, None)


def _not_fetched(file):
    """A file's description whose path is no address: that of an upload to this page is its path here."""
    if not is_http_url_like(file["path"]):
        return file
    _, uploaded, path = file["path"].partition(FILE)
    if not uploaded:
        raise gr.Error("Upload the film: this page fetches no address.", print_exception=False)
    return {**file, "path": unquote(path)}


def claim(folder):
    """Lock the uploads `folder` while this process lives; delete those beside it whose process was killed."""
    lock = FileLock(folder / ".lock")
    lock.acquire()
    for other in folder.parent.glob("uploads-*/.lock"):
        with suppress(OSError), FileLock(other, blocking=False):  # which fails while its process lives
            shutil.rmtree(other.parent)
    return lock


def sweep(folder, age, keep=frozenset()):
    """Delete what in `folder` was last changed more than `age` seconds ago, but for the paths in `keep`."""
    for path in sorted(folder.rglob("*"), reverse=True):  # files before the folder that they are in
        with suppress(OSError):  # gone meanwhile, or a folder that is not empty
            # abs: where the clock was set back, a file is not kept until it is that time again.
            if path not in keep and abs(time.time() - path.lstat().st_ctime) > age:
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def keep_clean(folder, every, age):
    """Sweep `folder` for ever, each `every` seconds; what is in it now stays."""
    keep = set(folder.rglob("*"))
    while True:
        time.sleep(every)
        sweep(folder, age, keep)
