"""PrivateBlocks, and the private parts of Gradio that it builds on."""

import asyncio
import inspect
from collections.abc import Callable

import gradio as gr
import gradio.exceptions
import gradio_client.utils
import pytest
from gradio.blocks import BlocksConfig
from gradio_client import Client

from fracture_lib.webui.gradio_private import POLL_INTERVAL, PrivateBlocks
from tests.helpers.app_client import App


@pytest.fixture(scope="module")
def blocks() -> gr.Blocks:
    """Gradio's own Blocks, with an event."""
    with gr.Blocks() as blocks:
        gr.Button().click(lambda: None)
    blocks.queue()
    return blocks


ATTRIBUTES: dict[str, Callable[[gr.Blocks], object]] = {
    "Blocks.default_config": lambda blocks: blocks.default_config,
    "Blocks.preprocess_data": lambda _: gr.Blocks.preprocess_data,
    "Blocks.process_api": lambda _: gr.Blocks.process_api,
    "Blocks.state_holder.session_data": lambda blocks: blocks.state_holder.session_data.pop,
    "Blocks.state_holder.time_last_used": lambda blocks: blocks.state_holder.time_last_used.pop,
    "Blocks._queue.pending_event_ids_session": lambda blocks: blocks._queue.pending_event_ids_session.pop,
    "Blocks._queue.pending_messages_per_session": lambda blocks: (
        blocks._queue.pending_messages_per_session.pop
    ),
    "Blocks._queue.sleep_when_free": lambda blocks: blocks._queue.sleep_when_free,
    "Blocks._queue.progress_update_sleep_when_free": lambda blocks: (
        blocks._queue.progress_update_sleep_when_free
    ),
    "BlocksConfig.__copy__": lambda _: BlocksConfig.__copy__,
    "BlocksConfig.config_for_block": lambda _: BlocksConfig.config_for_block,
    "exceptions.InvalidPathError": lambda _: gradio.exceptions.InvalidPathError,
    "gradio_client.utils.traverse": lambda _: gradio_client.utils.traverse,
    "gradio_client.utils.is_file_obj_with_meta": lambda _: gradio_client.utils.is_file_obj_with_meta,
    "gradio_client.utils.is_http_url_like": lambda _: gradio_client.utils.is_http_url_like,
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_gradio_has_private_attribute(blocks, name):
    try:
        ATTRIBUTES[name](blocks)
    except AttributeError as error:
        pytest.fail(
            f"Gradio {gr.__version__} no longer has {name} ({error}). "
            "Adapt fracture_lib/webui/gradio_private.py before raising the version in pyproject.toml."
        )


def test_queue_of_private_blocks_polls_less_often():
    with PrivateBlocks() as page:
        gr.Button().click(lambda: None)
    page.queue(max_size=3)
    assert page._queue.max_size == 3 and page._queue.sleep_when_free == POLL_INTERVAL


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("preprocess_data", ["self", "block_fn", "inputs", "state", "explicit_call"]),
        ("process_api", ["self", "block_fn", "inputs", "session_hash", "event_id"]),
    ],
)
def test_gradio_method_that_is_overridden_has_known_parameters(method, parameters):
    found = inspect.signature(getattr(gr.Blocks, method)).parameters
    assert set(parameters) <= set(found), (
        f"Gradio {gr.__version__} changed Blocks.{method}. Adapt fracture_lib/webui/gradio_private.py."
    )


def test_process_api_with_internal_error_logs_the_traceback_without_its_message(monkeypatch, caplog):
    message = "cannot open Jane Doe.png"  # a variable, as tracebacks quote the line

    async def fail(*_, **__):
        raise OSError(message)

    monkeypatch.setattr(gr.Blocks, "process_api", fail)
    with pytest.raises(gr.Error, match="Something went wrong on our side"):
        asyncio.run(PrivateBlocks().process_api(None, []))
    assert "Traceback" in caplog.text and "in fail" in caplog.text and "OSError" in caplog.text
    assert "Jane" not in caplog.text


def test_private_blocks_keep_no_session_of_a_single_call_and_a_small_one_of_a_client():
    with PrivateBlocks() as page:
        box = gr.Textbox()
        gr.Button().click(lambda text: text, box, box, api_name="echo")
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    sessions = page.state_holder.session_data
    try:
        for _ in range(3):
            assert App(url).call("echo", ["a"]) == ("complete", ["a"])
        assert not sessions and not page.state_holder.time_last_used
        queue = page._queue
        assert len(queue.pending_event_ids_session) == len(queue.pending_messages_per_session) == 1
        assert Client(url, verbose=False).predict("b", api_name="/echo") == "b"
        [session] = sessions.values()
        assert list(session.components) == []  # Gradio would keep them for deep links
    finally:
        page.close()
