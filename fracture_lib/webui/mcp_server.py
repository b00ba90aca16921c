"""The page's MCP server: four tools, each of which calls an HTTP endpoint of `webui.api`.

It replaces Gradio's own, which returns Python literals instead of JSON, leaves references in its schemas
unresolved and repeats what it was given in its errors. As the calls pass through the page's queue and upload
checks, the same limits hold as over HTTP. docs/api.md describes the tools.
"""

import base64
import binascii
import json
import logging
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import httpx
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.types import Tool, ToolAnnotations
from starlette.routing import Route
from starlette.types import ASGIApp

import fracture_lib
from fracture_lib.errors import FractureError, InvalidArgument, InvalidImage
from fracture_lib.inference.batch import MAX_IMAGES
from fracture_lib.inference.fracture import DETECTOR_NOTE, Outcome
from fracture_lib.labels import CLASSES
from fracture_lib.registry import ALL_MODELS, ENSEMBLE
from fracture_lib.webui.server import API, DISK_FULL, INTERNAL_ERROR, MAX_BODY, MAX_MCP_BODY, MCP_ROUTE

__all__ = ["app_options"]

logger = logging.getLogger(__name__)

SERVER_NAME = "fracture-classification"
INSTRUCTIONS = f"Classifies the type of a bone fracture in an X-ray. Not a medical device. {DETECTOR_NOTE}"
LIMIT = f"{MAX_BODY // 10**6} MB"
HOW_TO_PASS = (
    f'a data URI, such as "data:image/png;base64,...", of up to {LIMIT}, or the path of a file that was '
    f"uploaded to {API}upload"
)
FORMATS = "DICOM, PNG, JPEG, TIFF, BMP, WebP or GIF"
MAX_SHOWN = 40  # characters of a value that an error repeats

PARAMETERS: dict[str, dict[str, Any]] = {
    "image": {"type": "string", "description": f"The X-ray ({FORMATS}): {HOW_TO_PASS}."},
    "images": {
        "type": "array",
        "items": {"type": "string"},
        "minItems": 1,
        "maxItems": MAX_IMAGES,
        "description": f"X-rays ({FORMATS}), or ZIP archives of them, {MAX_IMAGES} images at most. Each is "
        f"{HOW_TO_PASS}; all data URIs of a request share the {LIMIT}.",
    },
    "model": {
        "type": "string",
        "enum": list(ALL_MODELS),
        "default": ENSEMBLE,
        "description": "The model that classifies the image.",
    },
    "top_k": {
        "type": "integer",
        "minimum": 1,
        "maximum": len(CLASSES),
        "default": 3,
        "description": "The number of classes to return per model, most probable first.",
    },
    "skip_ood_check": {
        "type": "boolean",
        "default": False,
        "description": "Also classify an image that does not look like a bone X-ray.",
    },
}
RESULT = {
    "type": "object",
    "properties": {
        "image": {"type": "string", "description": "The name of the image."},
        "status": {"enum": ["answered", "rejected", "failed", "unreadable"]},
        "is_ood": {
            "type": ["boolean", "null"],
            "description": "Whether it does not look like a bone X-ray; null if this could not be checked.",
        },
        "fracture": {
            "type": ["object", "null"],
            "description": "Whether a detector sees a fracture; null if the image was rejected or the "
            "detector failed. Show its message with the predictions.",
            "properties": {
                "outcome": {"enum": list(get_args(Outcome))},
                "probability": {
                    "type": "number",
                    "description": "Calibrated, of a visible fracture.",
                    "minimum": 0,
                    "maximum": 1,
                },
                "message": {"type": "string"},
            },
            "required": ["outcome", "probability", "message"],
        },
        "warnings": {"type": "array", "items": {"type": "string"}},
        "predictions": {
            "type": "array",
            "description": "One per model; empty if the image was rejected. Probabilities are calibrated.",
            "items": {"type": "object"},
        },
        "failures": {"type": "object", "description": "Models that failed, and why."},
        "summary": {"type": "string"},
        "error": {"type": "string", "description": "Why the image cannot be read."},
    },
    "required": ["image", "status"],
}


def _list_of(items: dict[str, Any], key: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {key: {"type": "array", "items": items}},
        "required": [key],
    }


@dataclass(frozen=True)
class _Endpoint:
    """An HTTP endpoint and how its tool presents it."""

    name: str
    description: str
    parameters: tuple[str, ...]  # in the order of the endpoint's inputs
    output_schema: dict[str, Any]
    list_key: str = ""  # of the object that holds the endpoint's list: structured content is an object

    def to_tool(self, name: str) -> Tool:
        properties = {parameter: PARAMETERS[parameter] for parameter in self.parameters}
        return Tool(
            name=name,
            description=self.description,
            inputSchema={
                "type": "object",
                "properties": properties,
                "required": [parameter for parameter in properties if "default" not in properties[parameter]],
                "additionalProperties": False,
            },
            outputSchema=self.output_schema,
            annotations=ToolAnnotations(readOnlyHint=True, openWorldHint=False),
        )


ENDPOINTS = {
    "classify_fracture": _Endpoint(
        "predict",
        f"Classify the type of fracture in one bone X-ray with one model. {DETECTOR_NOTE} "
        "Not a medical device.",
        ("image", "model", "top_k", "skip_ood_check"),
        RESULT,
    ),
    "compare_fracture_models": _Endpoint(
        "compare",
        f"Classify the type of fracture in one bone X-ray with all models. {DETECTOR_NOTE} "
        "Not a medical device.",
        ("image", "top_k", "skip_ood_check"),
        RESULT,
    ),
    "classify_fracture_batch": _Endpoint(
        "predict_batch",
        f"Classify the types of fracture in many bone X-rays with all models. {DETECTOR_NOTE} "
        "Not a medical device.",
        ("images", "top_k", "skip_ood_check"),
        _list_of(RESULT, "results"),
        "results",
    ),
    "list_fracture_models": _Endpoint(
        "models",
        "List the models with their measured accuracy, source and size.",
        (),
        _list_of({"type": "object"}, "models"),
        "models",
    ),
}


def app_options(upload_dir: Path) -> dict[str, Any]:
    """Return the options of a Starlette app, `routes` and `lifespan`, that add the MCP server to it."""
    _silence_log()
    server: Server[Any, Any] = Server(SERVER_NAME, fracture_lib.__version__, INSTRUCTIONS)

    @server.list_tools()
    async def list_tools() -> list[Tool]:
        return [endpoint.to_tool(name) for name, endpoint in ENDPOINTS.items()]

    @server.call_tool(validate_input=False)  # its errors would repeat the input
    async def call_tool(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        request = server.request_context.request
        assert request is not None  # only other transports have none
        try:
            return await _call_tool(request.app, upload_dir, name, arguments)
        except FractureError:
            raise
        except OSError as error:
            raise FractureError(DISK_FULL) from error
        except Exception as error:  # whose message may repeat the input
            logger.error("A tool failed: %s", type(error).__name__)
            raise FractureError(INTERNAL_ERROR) from error

    manager = StreamableHTTPSessionManager(server, stateless=True, max_request_body_size=MAX_MCP_BODY)

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        async with manager.run():
            yield

    return {
        "routes": [Route(path, manager.asgi_app) for path in (MCP_ROUTE, f"{MCP_ROUTE}/")],
        "lifespan": lifespan,
    }


def _silence_log() -> None:
    """Drop the log of the MCP package: it repeats invalid requests, and with them file names and images."""
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    logging.getLogger().addFilter(lambda record: "mcp" not in Path(record.pathname).parts)


async def _call_tool(
    app: ASGIApp, upload_dir: Path, name: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the endpoint behind the tool `name` returns. Raises FractureError."""
    if name not in ENDPOINTS:
        raise InvalidArgument(f"Unknown tool {_show(name)}. Choose from {', '.join(ENDPOINTS)}.")
    endpoint = ENDPOINTS[name]
    values = _read_arguments(endpoint, arguments)
    with TemporaryDirectory(prefix="mcp-", dir=upload_dir) as folder:
        if "image" in values:
            values["image"] = _to_file(values["image"], Path(folder) / "image", upload_dir)
        if "images" in values:
            values["images"] = [
                _to_file(image, Path(folder) / f"image-{i}", upload_dir)
                for i, image in enumerate(values["images"], 1)
            ]
        result = await _call_endpoint(app, endpoint.name, list(values.values()))
    return {endpoint.list_key: result} if endpoint.list_key else result


def _read_arguments(endpoint: _Endpoint, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value for each parameter of the endpoint, in order. Raises InvalidArgument and InvalidImage.

    JSON Schema's own errors would repeat the value, which may be an image of megabytes. The endpoint itself
    checks the model and the flag.
    """
    if unknown := [name for name in arguments if name not in endpoint.parameters]:
        takes = ", ".join(endpoint.parameters) or "no arguments"
        raise InvalidArgument(f"Unknown argument {_show(unknown[0])}. This tool takes {takes}.")
    values = {name: arguments.get(name, PARAMETERS[name].get("default")) for name in endpoint.parameters}
    if "images" in values:
        _check_images(values["images"])
    if "image" in values:
        _check_image(values["image"])
    if "top_k" in values:  # Gradio would round it
        top_k = values["top_k"]
        if isinstance(top_k, bool) or top_k not in range(1, len(CLASSES) + 1):  # 3.0 is in it
            raise InvalidArgument(f"top_k is {_show(top_k)}; use a whole number from 1 to {len(CLASSES)}.")
        values["top_k"] = int(top_k)
    return values


def _check_images(images: object) -> None:
    if not isinstance(images, list):
        raise InvalidArgument("images is not a list. Pass a list of images.")
    if not images:
        raise InvalidImage("There are no images. Pass at least one.")
    if len(images) > MAX_IMAGES:
        raise InvalidImage(f"Too many images ({len(images)}); the limit is {MAX_IMAGES}.")
    for image in images:
        _check_image(image)
    _check_size(sum(map(len, images)))


def _check_image(image: object) -> None:
    if not isinstance(image, str) or not image.strip():
        raise InvalidImage(f"There is no image. Pass {HOW_TO_PASS}.")
    _check_size(len(image))


def _check_size(size: int) -> None:
    if size > MAX_BODY:
        raise InvalidImage(
            f"The request holds {size / 1e6:.1f} MB of base64 data; the limit is {LIMIT}. "
            f"Upload the image to {API}upload and pass its path."
        )


def _to_file(image: str, path: Path, upload_dir: Path) -> dict[str, Any]:
    """Return Gradio's description of an image: an upload, or a data URI (RFC 2397), written to `path`."""
    image = image.strip()
    if image[:5].lower() == "data:":
        path.write_bytes(_decode_data_uri(image))
        image = str(path)
    elif not image.startswith((f"{upload_dir}/", "http://", "https://")):  # the page rejects foreign URLs
        raise InvalidImage(f"The image is neither a data URI nor an upload to this page. Pass {HOW_TO_PASS}.")
    return {"path": image, "meta": {"_type": "gradio.FileData"}}


def _decode_data_uri(uri: str) -> bytes:
    """Return the bytes of a base64 data URI, in which white space is ignored. Raises InvalidImage."""
    header, _, data = uri.partition(",")
    if header.rpartition(";")[2].strip().lower() != "base64" or ";" not in header:
        raise InvalidImage(f"The data URI is not in base64. Pass {HOW_TO_PASS}.")
    try:
        content = base64.b64decode(re.sub(r"\s", "", data), validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: not ASCII
        raise InvalidImage(
            "The data URI is not valid base64. Encode the file again, with padding."
        ) from error
    if not content:
        raise InvalidImage("The data URI is empty. Encode the file again.")
    return content


async def _call_endpoint(app: ASGIApp, name: str, inputs: list[Any]) -> Any:
    """Call an HTTP endpoint of the page, within this process. Raises FractureError with its message."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as client:
        response = await client.post(f"{API}call/{name}", json={"data": inputs})
        answer = response.json()
        if response.is_error:
            raise FractureError(answer["detail"])
        stream = await client.get(f"{API}call/{name}/{answer['event_id']}")
    ended = re.search(r"^event: (complete|error)\ndata: (.*)", stream.text, re.MULTILINE)
    if ended is None:
        raise FractureError(INTERNAL_ERROR)
    data: Any = json.loads(ended[2])
    if ended[1] == "error":
        raise FractureError(data.get("error") or INTERNAL_ERROR)
    return data[0]


def _show(value: object) -> str:
    """Return the start of a value, as JSON."""
    text = json.dumps(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}\u2026"
