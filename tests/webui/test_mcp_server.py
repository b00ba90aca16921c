"""The page's MCP server, as a client of the official package sees it."""

import asyncio
import base64
import json
import zipfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from mcp import ClientSession
from mcp.types import CallToolResult, TextContent

import fracture_lib
from fracture_lib.inference.fracture import DETECTOR_NOTE
from fracture_lib.registry import ALL_MODELS
from fracture_lib.webui.server import MAX_BODY
from tests.helpers.app_client import API, App, mcp_session
from tests.helpers.app_runner import running_app

CLASSIFY, COMPARE, BATCH, LIST = (
    *("classify_fracture", "compare_fracture_models"),
    *("classify_fracture_batch", "list_fracture_models"),
)
PARAMETERS = {
    CLASSIFY: {"image", "model", "top_k", "skip_ood_check"},
    COMPARE: {"image", "top_k", "skip_ood_check"},
    BATCH: {"images", "top_k", "skip_ood_check"},
    LIST: set(),
}


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Iterator[App]:
    folder = tmp_path_factory.mktemp("mcp")
    uploads, log = folder / "uploads", folder / "log.txt"
    uploads.mkdir()
    with running_app(log, GRADIO_TEMP_DIR=str(uploads)) as url:
        yield App(url, uploads, log)


def use(app: App, steps: Callable[[ClientSession], Any]) -> Any:
    """Return what the coroutine `steps(session)` returns."""

    async def run() -> Any:
        async with mcp_session(app.url) as session:
            return await steps(session)

    return asyncio.run(run())


def call(app: App, tool: str, arguments: dict[str, Any]) -> CallToolResult:
    return use(app, lambda session: session.call_tool(tool, arguments))


def text_of(result: CallToolResult) -> str:
    [content] = result.content
    assert isinstance(content, TextContent)
    return content.text


def call_json(app: App, tool: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON object that a tool returns as text and as structured content."""
    result = call(app, tool, arguments)
    assert not result.isError, text_of(result)
    parsed = json.loads(text_of(result))
    assert parsed == result.structuredContent
    return parsed


def data_uri(content: bytes, head: str = "data:image/png;base64,") -> str:
    return head + base64.b64encode(content).decode()


def references(schema: Any) -> Iterator[str]:
    """Yield every $ref in a schema."""
    if isinstance(schema, dict):
        yield from (value for key, value in schema.items() if key == "$ref")
    if isinstance(schema, dict | list):
        for value in schema.values() if isinstance(schema, dict) else schema:
            yield from references(value)


def test_tools_have_names_and_schemas_that_stand_on_their_own(app):
    tools = use(app, lambda session: session.list_tools()).tools
    assert {tool.name: set(tool.inputSchema["properties"]) for tool in tools} == PARAMETERS
    for tool in tools:
        for schema in (tool.inputSchema, tool.outputSchema):
            assert schema["type"] == "object" and not list(references(schema))
        assert all(parameter["description"] for parameter in tool.inputSchema["properties"].values())
        if tool.name != LIST:
            assert "Not a medical device" in tool.description and DETECTOR_NOTE in tool.description
            assert '"fracture": ' in json.dumps(tool.outputSchema)
            text = json.dumps(tool.inputSchema)
            assert "data:image/png;base64," in text and "/gradio_api/upload" in text and "http" not in text


def test_classify_returns_the_librarys_prediction(app, image_path):
    image = data_uri(image_path.read_bytes())
    result = call_json(app, CLASSIFY, {"image": image, "model": "resnet50", "top_k": 4})
    assert result["fracture"]["outcome"] in ("visible", "uncertain", "none")
    assert 0 <= result["fracture"]["probability"] <= 1
    [prediction] = result["predictions"]
    expected = fracture_lib.load_model("resnet50").predict(image_path, top_k=4).scores
    assert [s["label"] for s in prediction["scores"]] == [s.label for s in expected]
    assert prediction["scores"][0]["probability"] == pytest.approx(expected[0].probability, abs=1e-5)


def test_compare_and_list_cover_all_models(app, image_path):
    compared = call_json(app, COMPARE, {"image": data_uri(image_path.read_bytes())})
    assert [prediction["model"] for prediction in compared["predictions"]] == list(ALL_MODELS)
    assert [model["model"] for model in call_json(app, LIST, {})["models"]] == list(ALL_MODELS)


def test_batch_returns_one_result_per_image_of_every_source(app, image_path):
    content = image_path.read_bytes()
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("zipped.png", content)
    uploaded = app.upload_file("uploaded.png", content)["path"]
    before = app.files()
    images = [
        *(data_uri(content), data_uri(b"not an image"), uploaded),
        *(
            f"{app.url}{API}/file={quote(uploaded)}",
            data_uri(archive.getvalue(), "data:application/zip;base64,"),
        ),
    ]
    results = call_json(app, BATCH, {"images": images})["results"]
    assert [result["status"] for result in results] == ["answered", "unreadable", *["answered"] * 3]
    names = [Path(result["image"]).name for result in results]
    assert names == ["image-1", "image-2", "uploaded.png", "uploaded.png (2)", "zipped.png"]
    assert "Unsupported file" in results[1]["error"]
    assert all(path.stat().st_size == 0 for path in app.files() - before)  # no copy of a data URI


@pytest.mark.parametrize(
    "encode",
    [
        lambda content: data_uri(content, "data:;base64,"),
        lambda content: data_uri(content, "DATA:image/png;name=a.png;BASE64,"),
        lambda content: f"\n{data_uri(content)}\n",
        lambda content: "data:image/png;base64,\r\n" + base64.encodebytes(content).decode(),
    ],
    ids=["no type", "parameters", "white space around", "lines"],
)
def test_classify_with_unusual_data_uri_reads_it(app, image_path, encode):
    result = call_json(app, CLASSIFY, {"image": encode(image_path.read_bytes()), "model": "pytorch-cnn"})
    assert result["status"] == "answered"


PNG = b"\x89PNG\r\n\x1a\n"
INVALID_IMAGES: dict[str, tuple[Any, str]] = {
    "none": (None, "no image"),
    "blank": (" ", "no image"),
    "number": (5, "no image"),
    "list": ([data_uri(PNG)], "no image"),
    "object": ({"path": "image.png"}, "no image"),
    "bare base64": ("iVBORw0KGgo" * 10_000, "neither a data URI nor an upload"),
    "short bare base64": ("iVBORw0KGgo" * 30, "neither a data URI nor an upload"),
    "bare base64 of a JPEG": ("/9j/4AAQSkZJRg" * 30, "neither a data URI nor an upload"),
    "not base64": ("data:image/png;base64,@@@@", "not valid base64"),
    "not ASCII": ("data:image/png;base64,\u00e4\u00e4\u00e4\u00e4", "not valid base64"),
    "no padding": ("data:image/png;base64,iVBORw0KGg", "not valid base64"),
    "percent-encoded": ("data:image/png,%89PNG", "not in base64"),
    "no semicolon": ("data:base64,iVBORw0KGgo=", "not in base64"),
    "empty": ("data:image/png;base64,", "is empty"),
    "text": (data_uri(b"no image"), "Unsupported file"),
    "ZIP": (data_uri(b"PK\3\4" + bytes(99), "data:application/zip;base64,"), "Unsupported file"),
    "5 MB": (data_uri(bytes(5_000_000)), "the limit is 4 MB"),
    "URL": ("https://example.com/image.png", "URLs are not accepted"),
    "path": ("/etc/passwd", "neither a data URI nor an upload"),
    "file URL": ("file:///etc/passwd", "neither a data URI nor an upload"),
    "unknown path": ("image.png", "neither a data URI nor an upload"),
    "NUL": ("image\0.png", "neither a data URI nor an upload"),
}
INVALID_LISTS: dict[str, tuple[Any, str]] = {
    "none": (None, "not a list"),
    "string": (data_uri(PNG), "not a list"),
    "empty": ([], "no images"),
    "201": (["image.png"] * 201, "Too many images (201)"),
    "number": ([5], "no image"),
    "5 MB": ([data_uri(bytes(2_000_000))] * 2, "the limit is 4 MB"),
}
INVALID_OTHERS: dict[str, tuple[Any, str]] = {
    "top_k": ([0, 11, "3", None, True, 2.5, [], {"a": "b" * 9000}, 10**50], "whole number from 1 to 10"),
    "model": (["unknown", None, [], "b" * 9000], "Choose from pytorch-cnn"),
    "skip_ood_check": ([None, "yes", 1, "b" * 9000], "use true or false"),
    "b" * 9000: ([1], "This tool takes image, model"),
}
INVALID = [
    *((CLASSIFY, {"image": image}, message) for image, message in INVALID_IMAGES.values()),
    *((BATCH, {"images": images}, message) for images, message in INVALID_LISTS.values()),
    *(
        (CLASSIFY, {"image": data_uri(PNG), name: value}, message)
        for name, (values, message) in INVALID_OTHERS.items()
        for value in values
    ),
    (COMPARE, {}, "no image"),
    (LIST, {"image": ""}, "takes no arguments"),
    ("unknown", {}, f"Choose from {CLASSIFY}"),
]


def test_invalid_call_returns_one_short_message_that_says_what_is_wrong(app):
    async def call_all(session: ClientSession) -> list[CallToolResult]:
        return [await session.call_tool(tool, arguments) for tool, arguments, _ in INVALID]

    for (tool, arguments, message), result in zip(INVALID, use(app, call_all), strict=True):
        text = text_of(result)
        assert result.isError and message in text, (tool, str(arguments)[:80], text)
        assert len(text) < 250 and text.endswith(".") and "\n" not in text and "Traceback" not in text


@pytest.mark.parametrize(
    "body",
    [
        *(b'["Jane Doe', b"[" * 100_000, b"\xffJane Doe", b'["Jane Doe"]', b"9" * 5000),
        b'{"jsonrpc": "2.0", "id": 1, "method": "Jane Doe"}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": {"Jane Doe": 1}}}',
        b'{"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "a", "arguments": "Jane"}}',
    ],
)
def test_request_that_is_not_valid_is_answered_and_not_logged(app, body):
    connection = app.connect()
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    connection.request("POST", f"{API}/mcp/", body, headers)
    answer = connection.getresponse().read()
    assert b'"error"' in answer and len(answer) < 2000
    assert "Jane" not in app.log.read_text()


def test_only_the_mcp_route_itself_is_open(app):
    assert app.request(f"{API}/mcp/schema").status == 404
    assert app.request(f"{API}/mcp/").status == 406  # not a client that streams


def test_limit_of_base64_data_is_below_that_of_a_request(app):
    image = "data:image/png;base64," + "A" * (MAX_BODY - 100)
    assert "Unsupported file" in text_of(call(app, CLASSIFY, {"image": image}))
