"""The only module that relies on Gradio's private attributes and helpers.

Gradio fetches URLs that it is given as files, logs what it was given when it fails, keeps a session for every
call of a program, and polls its queue. tests/webui/test_gradio_private.py fails when an attribute moves or
vanishes.
"""

import logging
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import gradio as gr
from gradio.blocks import BlockFunction, BlocksConfig
from gradio.exceptions import InvalidPathError
from gradio.processing_utils import hash_file
from gradio.state_holder import SessionState
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse

from fracture_lib.webui.server import FILE_ROUTE, INTERNAL_ERROR, INVALID_REQUEST, NOT_AN_UPLOAD

__all__ = ["POLL_INTERVAL", "PrivateBlocks", "is_copy"]

POLL_INTERVAL = 0.02  # seconds; Gradio's queue looks every millisecond, which takes 3 % of a core while idle

logger = logging.getLogger(__name__)


class _LightConfig(BlocksConfig):
    """The components of a page, of which Gradio makes a copy per session.

    For each copy, Gradio writes down the settings of all components (150 kB, 10 ms) to create deep links,
    whose route is closed; and each call of a program is a session of its own.
    """

    def __copy__(self) -> BlocksConfig:
        session = super().__copy__()
        session.config_for_block = lambda *_: {}
        return session


class PrivateBlocks(gr.Blocks):
    """Blocks that fetch no URL, log no file name and keep no session beyond its only call."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.default_config = _LightConfig(self)
        self._ended_sessions: set[str] = set()  # until their results have been fetched

    def queue(self, *arguments: Any, **options: Any) -> Any:
        super().queue(*arguments, **options)
        self._queue.sleep_when_free = POLL_INTERVAL
        self._queue.progress_update_sleep_when_free = 5 * POLL_INTERVAL
        return self

    async def preprocess_data(
        self,
        block_fn: BlockFunction,
        inputs: list[Any],
        state: SessionState | None,
        explicit_call: bool = False,
    ) -> list[Any]:
        try:
            inputs = traverse(inputs, _to_local_path, is_file_obj_with_meta)
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except gr.Error as error:
            error.print_exception = False
            raise
        except InvalidPathError as error:
            raise gr.Error(NOT_AN_UPLOAD, print_exception=False) from error
        except Exception as error:  # Gradio's own messages repeat what was given
            raise gr.Error(INVALID_REQUEST, print_exception=False) from error

    async def process_api(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        try:
            return await super().process_api(*arguments, **options)
        except gr.Error:
            raise
        except Exception as error:
            frames = "".join(traceback.format_tb(error.__traceback__))
            logger.error("Traceback, without the message:\n%s%s", frames, type(error).__name__)
            raise gr.Error(INTERNAL_ERROR, print_exception=False) from error
        finally:
            event = options.get("event_id")
            if event and event == options.get("session_hash"):  # the caller named no session to return to
                self._forget(event)

    def _forget(self, session: str) -> None:
        """Drop a session that has ended, and the queue's leftovers of those before it."""
        self.state_holder.session_data.pop(session, None)
        self.state_holder.time_last_used.pop(session, None)
        self._ended_sessions.add(session)
        waiting, messages = self._queue.pending_event_ids_session, self._queue.pending_messages_per_session
        # The queue itself drops the messages of all but the latest sessions.
        for ended in [s for s in self._ended_sessions if not waiting.get(s) or s not in messages]:
            self._ended_sessions.remove(ended)
            waiting.pop(ended, None)
            messages.pop(ended, None)


def is_copy(path: str, source: Path) -> bool:
    """Return whether Gradio keeps its copy of `source` at `path`, in a folder named after the content."""
    copy = Path(path)
    return copy.name == source.name and source.exists() and copy.parent.name == hash_file(source)


def _to_local_path(file: dict[str, Any]) -> dict[str, Any]:
    """Return a file's description with a local path; raise gr.Error for a URL of another server.

    The URL of an upload to this page becomes its path here.
    """
    if not is_http_url_like(file["path"]):
        return file
    _, is_upload, path = file["path"].partition(FILE_ROUTE)
    if not is_upload:
        raise gr.Error("URLs are not accepted; upload the file.", print_exception=False)
    return {**file, "path": unquote(path)}
