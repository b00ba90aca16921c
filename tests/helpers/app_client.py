"""Raw requests to a running page, including those that no browser sends."""

import http.client
import json
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client

API = "/gradio_api"
BOUNDARY = "b0undary"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"
TIMEOUT = 120  # seconds


class Response(NamedTuple):
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes


@dataclass(frozen=True)
class App:
    """A running page."""

    url: str
    uploads: Path | None = None  # the folder of GRADIO_TEMP_DIR
    log: Path | None = None

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=TIMEOUT)

    def request(
        self, path: str, body: bytes | None = None, content_type: str = "application/json"
    ) -> Response:
        """Send one request, a POST if it has a body; the path is sent unchanged."""
        connection = self.connect()
        connection.request("GET" if body is None else "POST", path, body, {"Content-Type": content_type})
        return _read(connection)

    def request_in_chunks(self, path: str, chunks: Iterable[bytes], content_type: str) -> Response:
        """Send a POST that does not announce its size."""
        connection = self.connect()
        connection.request("POST", path, iter(chunks), {"Content-Type": content_type}, encode_chunked=True)
        return _read(connection)

    def announce(self, path: str, size: int) -> Response:
        """Send only the headers of a POST with a body of `size` bytes."""
        connection = self.connect()
        connection.putrequest("POST", path)
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        return _read(connection)

    def call(self, endpoint: str, data: list[Any] | bytes) -> tuple[str, Any]:
        """Return how a call ends, ("complete", results) or ("error", {"error": message}).

        `data` is a list of inputs, or JSON.
        """
        body = data if isinstance(data, bytes) else json.dumps({"data": data}).encode()
        response = self.request(f"{API}/call/{endpoint}", body)
        assert response.status == 200, response.body
        event_id = json.loads(response.body)["event_id"]
        stream = self.request(f"{API}/call/{endpoint}/{event_id}").body.decode()
        match = re.search(r"event: (complete|error)\ndata: (.*)", stream)
        assert match, stream
        return match[1], json.loads(match[2])

    def upload(self, *parts: bytes) -> tuple[int, Any]:
        """Send one upload; return the status and the paths, or the text of an error."""
        body = b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
        status, _, answer = self.request(f"{API}/upload", body, MULTIPART)
        return status, json.loads(answer) if status == 200 else answer.decode()

    def upload_file(self, name: str, content: bytes) -> dict[str, Any]:
        """Upload a file; return the input that refers to it."""
        status, paths = self.upload(part(name, content))
        assert status == 200, paths
        return file_data(paths[0])

    def files(self) -> set[Path]:
        """Return the files in the upload folder."""
        assert self.uploads
        return {path for path in self.uploads.rglob("*") if path.is_file()}


def _read(connection: http.client.HTTPConnection) -> Response:
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Response(response.status, headers, response.read())


def part(name: str, content: bytes, field: str = "files") -> bytes:
    """Return one file of a multipart body."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="'
    return head.encode() + name.encode() + b'"\r\n\r\n' + content + b"\r\n"


def file_data(path: object) -> dict[str, Any]:
    """Return Gradio's description of a file."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


@asynccontextmanager
async def mcp_session(url: str) -> AsyncIterator[ClientSession]:
    """Connect to the MCP server of a page."""
    async with (
        streamable_http_client(f"{url}{API}/mcp/") as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        yield session
