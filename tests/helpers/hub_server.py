"""A small Hugging Face Hub on loopback: real clients push to it and pull from it; it fails on demand.

Independent of this project. Point clients at it with HF_ENDPOINT, before their first import, and
HF_HUB_DISABLE_XET=1, as it speaks LFS only.

    with serve() as hub:
        sha = hub.add("someone/model", {"config.json": b"{}"})   # or a folder
        hub.fail("GET", "model.onnx", status=500, times=2)
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LFS_SUFFIXES = {".onnx", ".keras", ".safetensors", ".parquet", ".png", ".jpg", ".bin", ".gz", ".zip"}


@dataclass
class Blob:
    data: bytes
    is_lfs: bool

    @cached_property
    def oid(self) -> str:
        """The git hash of a regular file, or of the pointer to a large one."""
        data = self.data
        if self.is_lfs:
            pointer = f"oid sha256:{self.sha256}\nsize {len(data)}\n"
            data = f"version https://git-lfs.github.com/spec/v1\n{pointer}".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.oid

    def describe(self) -> dict[str, Any]:
        size = len(self.data)
        description: dict[str, Any] = {"size": size, "oid": self.oid, "blobId": self.oid}
        if self.is_lfs:
            description["lfs"] = {"oid": self.sha256, "sha256": self.sha256, "size": size, "pointerSize": 134}
        return description


Files: TypeAlias = dict[str, Blob]  # by path


@dataclass
class Repository:
    kind: str  # "models", "datasets" or "spaces"
    id: str
    private: bool = False
    variables: dict[str, str] = field(default_factory=dict)  # of a Space
    hardware: str | None = None  # of a Space
    refs: dict[str, str] = field(default_factory=dict)  # branch or pull request -> commit sha
    commits: dict[str, Files] = field(default_factory=dict)  # by sha

    def tree(self, revision: str) -> tuple[str, Files]:
        """Return (sha, files) of a branch, pull request or commit."""
        sha = self.refs.get(revision, revision)
        if sha not in self.commits:
            raise HubError(404, "RevisionNotFound")
        return sha, self.commits[sha]

    def commit(self, files: Files, branch: str = "main") -> str:
        listing = [branch, len(self.commits), *((path, blob.oid) for path, blob in sorted(files.items()))]
        sha = hashlib.sha1(json.dumps(listing).encode()).hexdigest()
        self.commits[sha] = files
        self.refs[branch] = sha
        return sha


class HubError(Exception):
    """A response other than 200, with the Hub's error code."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.response = JSONResponse({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})


@dataclass
class Fault:
    """What to do to matching requests; see `Hub.fail`."""

    method: str
    path: re.Pattern[str]
    times: int
    status: int | None  # respond with this status
    headers: dict[str, str]  # of that response
    close: bool  # close the connection instead of responding
    cut: bool  # end the connection in the middle of the body
    corrupt: bool  # change the last byte of the body
    stall: float  # seconds to wait in the middle of the body
    seconds: float  # to wait before the response


class Hub:
    """The state of the server, which tests read and change."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.address = ""
        self.repositories: dict[tuple[str, str], Repository] = {}  # by (kind, id)
        self.uploads: dict[str, bytes] = {}  # large files by sha256
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []  # (method, path) of every request

    def add(
        self, repo: str, files: Path | Mapping[str, bytes], kind: str = "models", private: bool = False
    ) -> str:
        """Create or extend a repository from a folder or {path: bytes}; return the commit's sha."""
        if isinstance(files, Path):
            paths = [path for path in files.rglob("*") if path.is_file()]
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in paths}
        repository = self.repositories.setdefault((kind, repo), Repository(kind, repo, private))
        existing = repository.tree("main")[1] if repository.refs else {}
        added = {path: Blob(data, Path(path).suffix in LFS_SUFFIXES) for path, data in files.items()}
        return repository.commit(existing | added)

    def files(self, repo: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """Return {path: bytes} of a repository."""
        return {path: blob.data for path, blob in self.repositories[kind, repo].tree(revision)[1].items()}

    def fail(
        self,
        method: str,
        path: str,
        times: int = 1,
        status: int | None = None,
        headers: dict[str, str] | None = None,
        close: bool = False,
        cut: bool = False,
        corrupt: bool = False,
        stall: float = 0.0,
        seconds: float = 0.0,
    ) -> None:
        """Make the next `times` requests fail whose path contains the regular expression `path`."""
        pattern = re.compile(path)
        self.faults.append(
            Fault(method, pattern, times, status, headers or {}, close, cut, corrupt, stall, seconds)
        )

    def next_fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.method == method and fault.path.search(path):
                fault.times -= 1
                return fault
        return None


# Routes: functions of the hub, the request, its body and the groups of its path


def whoami(hub: Hub, request: Request, body: bytes) -> object:
    return {"type": "user", "name": "someone", "orgs": [], "auth": {"accessToken": {"role": "write"}}}


def create(hub: Hub, request: Request, body: bytes) -> object:
    content = json.loads(body)
    kind = f"{content.get('type') or 'model'}s"
    repo = f"{content.get('organization') or 'someone'}/{content['name']}"
    url = f"{hub.address}/{'' if kind == 'models' else kind + '/'}{repo}"
    if (kind, repo) in hub.repositories:
        return JSONResponse({"error": "the repository exists", "url": url}, 409)
    private = content.get("private") or content.get("visibility") == "private"
    repository = hub.repositories[kind, repo] = Repository(kind, repo, bool(private))
    repository.hardware = content.get("hardware")
    repository.commit({".gitattributes": Blob(b"", False)})
    return {"url": url, "id": repo}


def validate_yaml(hub: Hub, request: Request, body: bytes) -> object:
    header = json.loads(body)["content"].split("---\n")[1]
    try:
        metadata = yaml.safe_load(header)
    except yaml.YAMLError as error:
        return {"errors": [{"message": str(error)}], "warnings": []}
    return {"errors": [] if isinstance(metadata, dict) else [{"message": "no metadata"}], "warnings": []}


def preupload(hub: Hub, request: Request, body: bytes, kind: str, repo: str, revision: str) -> object:
    find_repository(hub, request, kind, repo)
    return {
        "files": [
            {
                "path": file["path"],
                "uploadMode": "lfs" if Path(file["path"]).suffix in LFS_SUFFIXES else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
    }


def lfs_batch(hub: Hub, request: Request, body: bytes, kind: str | None, repo: str) -> object:
    objects = []
    for requested in json.loads(body)["objects"]:
        entry = {"oid": requested["oid"], "size": requested["size"]}
        if requested["oid"] not in hub.uploads:
            entry["actions"] = {"upload": {"href": f"{hub.address}/lfs/{requested['oid']}"}}
        objects.append(entry)
    return {"transfer": "basic", "objects": objects}


def lfs_put(hub: Hub, request: Request, body: bytes, oid: str) -> object:
    if hashlib.sha256(body).hexdigest() != oid:
        raise HubError(422, "WrongChecksum")
    hub.uploads[oid] = body
    return {}


def commit(hub: Hub, request: Request, body: bytes, kind: str, repo: str, revision: str) -> object:
    repository = find_repository(hub, request, kind, repo)
    lines = [json.loads(line) for line in body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    sha, existing = repository.tree(revision)
    if header.get("parentCommit") not in (None, sha):
        raise HubError(412, "PreconditionFailed")
    files = dict(existing)  # the whole commit or nothing
    for line in lines:
        value = line["value"]
        match line["key"]:
            case "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            case "lfsFile":
                if value["oid"] not in hub.uploads:
                    raise HubError(400, "LfsObjectMissing")
                files[value["path"]] = Blob(hub.uploads[value["oid"]], True)
            case "deletedFile":
                files.pop(value["path"], None)
            case "deletedFolder":
                prefix = value["path"].rstrip("/") + "/"
                files = {path: blob for path, blob in files.items() if not path.startswith(prefix)}
    branch, pull_request = revision, {}
    if request.query_params.get("create_pr"):
        number = 1 + sum(ref.startswith("refs/pr/") for ref in repository.refs)
        branch = f"refs/pr/{number}"
        pull_request = {"pullRequestUrl": f"{hub.address}/{repo}/discussions/{number}"}
    sha = repository.commit(files, branch)
    url = f"{hub.address}/{repo}/commit/{sha}"
    return {"success": True, "commitOid": sha, "commitUrl": url, **pull_request}


def info(hub: Hub, request: Request, body: bytes, kind: str, repo: str, revision: str = "main") -> object:
    repository = find_repository(hub, request, kind, repo)
    sha, files = repository.tree(revision)
    siblings = [{"rfilename": path, **blob.describe()} for path, blob in files.items()]
    return {
        "id": repo,
        "modelId": repo,
        "sha": sha,
        "private": repository.private,
        "siblings": siblings,
        "tags": [],
    }


def tree(
    hub: Hub, request: Request, body: bytes, kind: str, repo: str, revision: str, folder: str = ""
) -> object:
    _, files = find_repository(hub, request, kind, repo).tree(revision)
    recursive = request.query_params.get("recursive", "").lower() in ("1", "true")
    prefix = f"{folder}/" if folder else ""
    entries: list[dict[str, Any]] = []
    folders: set[str] = set()
    for path, blob in files.items():
        if path.startswith(prefix):
            parts = path[len(prefix) :].split("/")
            folders |= {prefix + "/".join(parts[: i + 1]) for i in range(len(parts) - 1)}
            if recursive or len(parts) == 1:
                entries.append({"type": "file", "path": path, **blob.describe()})
    folders = {path for path in folders if recursive or "/" not in path[len(prefix) :]}
    if folder and not entries and not folders:
        raise HubError(404, "EntryNotFound")
    return [_describe_folder(path) for path in sorted(folders)] + entries


def refs(hub: Hub, request: Request, body: bytes, kind: str, repo: str) -> object:
    repository = find_repository(hub, request, kind, repo)
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
        for name, sha in repository.refs.items()
    ]
    return {"branches": branches, "tags": [], "converts": []}


def paths_info(hub: Hub, request: Request, body: bytes, kind: str, repo: str, revision: str) -> object:
    _, files = find_repository(hub, request, kind, repo).tree(revision)
    if request.headers.get("content-type", "").startswith("application/json"):
        paths = json.loads(body)["paths"]
    else:
        paths = [unquote(p.partition("=")[2]) for p in body.decode().split("&") if p.startswith("paths=")]
    paths = [paths] if isinstance(paths, str) else paths
    entries = [{"type": "file", "path": path, **files[path].describe()} for path in paths if path in files]
    folders = [p for p in paths if p not in files and any(file.startswith(p + "/") for file in files)]
    return entries + [_describe_folder(path) for path in folders]


def _describe_folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}


def resolve(
    hub: Hub, request: Request, body: bytes, kind: str | None, repo: str, revision: str, path: str
) -> object:
    sha, files = find_repository(hub, request, kind, repo).tree(revision)
    if path not in files:
        raise HubError(404, "EntryNotFound")
    blob = files[path]
    headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
    if blob.is_lfs:
        headers |= {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
    data, status = blob.data, 200
    if byte_range := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", "")):
        first, last = int(byte_range[1]), min(int(byte_range[2] or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        data, status = data[first : last + 1], 206
    return Response(data, status, headers, "application/octet-stream")


def variables(hub: Hub, request: Request, body: bytes, kind: str, repo: str) -> object:
    content = json.loads(body)
    find_repository(hub, request, kind, repo).variables[content["key"]] = content["value"]
    return {}


def hardware(hub: Hub, request: Request, body: bytes, kind: str, repo: str) -> object:
    flavor = find_repository(hub, request, kind, repo).hardware = json.loads(body)["flavor"]
    return {"stage": "BUILDING", "hardware": {"current": None, "requested": flavor}}


def find_repository(hub: Hub, request: Request, kind: str | None, repo: str) -> Repository:
    """Return a repository that the request may see; raise HubError otherwise."""
    repository = hub.repositories.get((kind or "models", repo))
    if repository is None or (repository.private and not is_signed_in(hub, request)):
        raise HubError(404 if is_signed_in(hub, request) else 401, "RepoNotFound")
    return repository


def is_signed_in(hub: Hub, request: Request) -> bool:
    return request.headers.get("authorization") == f"Bearer {hub.token}"


_API, _ID = r"/api/(models|datasets|spaces)", r"([^/]+/[^/]+)"
_GIT = rf"/(?:(datasets|spaces)/)?{_ID}"
ROUTES: list[tuple[str, str, Callable[..., object], bool]] = [
    # method, path before unquoting, function, whether it needs a token
    ("GET", r"/api/whoami-v2", whoami, True),
    ("POST", r"/api/repos/create", create, True),
    ("POST", r"/api/validate-yaml", validate_yaml, False),
    ("POST", rf"{_API}/{_ID}/preupload/([^/]+)", preupload, True),
    ("POST", rf"{_API}/{_ID}/commit/([^/]+)", commit, True),
    ("POST", rf"{_API}/{_ID}/paths-info/([^/]+)", paths_info, False),
    ("GET", rf"{_API}/{_ID}/tree/([^/]+)(?:/(.+))?", tree, False),
    ("GET", rf"{_API}/{_ID}/refs", refs, False),
    ("POST", rf"{_API}/{_ID}/variables", variables, True),
    ("POST", rf"{_API}/{_ID}/hardware", hardware, True),
    ("GET", rf"{_API}/{_ID}/revision/([^/]+)", info, False),
    ("GET", rf"{_API}/{_ID}", info, False),
    ("POST", rf"{_GIT}\.git/info/lfs/objects/batch", lfs_batch, True),
    ("PUT", r"/lfs/([0-9a-f]{64})", lfs_put, False),
    ("GET", rf"{_GIT}/resolve/([^/]+)/(.+)", resolve, False),
]


def _dispatch(hub: Hub) -> ASGIApp:
    async def endpoint(request: Request) -> Response:
        path = request.scope["raw_path"].decode().split("?")[0]
        method = "GET" if request.method == "HEAD" else request.method
        for route_method, pattern, function, needs_token in ROUTES:
            if route_method == method and (match := re.fullmatch(pattern, path)):
                try:
                    if needs_token and not is_signed_in(hub, request):
                        raise HubError(401, "Unauthorized")
                    groups = [unquote(group) if group else group for group in match.groups()]
                    while groups and groups[-1] is None:
                        groups.pop()
                    result = function(hub, request, await request.body(), *groups)
                except HubError as error:
                    return error.response
                return result if isinstance(result, Response) else JSONResponse(result)
        return JSONResponse({"error": f"no route {request.method} {path}"}, 404)

    return Starlette(routes=[Route("/{path:path}", endpoint, methods=["GET", "HEAD", "POST", "PUT"])])


def _inject_faults(app: ASGIApp, hub: Hub) -> ASGIApp:
    """Wrap an ASGI app: record each request and apply the hub's faults to it."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        hub.requests.append((scope["method"], scope["path"]))
        fault = hub.next_fault(scope["method"], scope["path"])
        if fault is None:
            return await app(scope, receive, send)
        await asyncio.sleep(fault.seconds)
        if fault.status:
            response = JSONResponse({"error": "on demand"}, fault.status, fault.headers)
            return await response(scope, receive, send)
        if fault.close:
            send.__self__.transport.abort()  # type: ignore[attr-defined]  # uvicorn's; ASGI cannot do this
            return await asyncio.sleep(0.1)  # until uvicorn notices that nobody waits for a response
        await app(scope, receive, _spoil(send, fault))

    return wrapped


def _spoil(send: Send, fault: Fault) -> Callable[[Message], Awaitable[None]]:
    """Return a `send` that cuts off, delays or changes the body."""

    async def spoiled_send(message: Message) -> None:
        body = message.get("body", b"")
        half = len(body) // 2
        if body and fault.cut:
            await send({**message, "body": body[:half], "more_body": True})
            raise ConnectionError("cut on demand")  # uvicorn closes the connection
        if body and fault.stall:
            await send({**message, "body": body[:half], "more_body": True})
            await asyncio.sleep(fault.stall)
            message = {**message, "body": body[half:]}
        if body and fault.corrupt:
            message = {**message, "body": body[:-1] + bytes([body[-1] ^ 1])}
        await send(message)

    return spoiled_send


@contextlib.contextmanager
def serve(token: str = "hf_test") -> Iterator[Hub]:
    """Run a Hub in a thread; yield it, with its `address`."""
    hub = Hub(token)
    config = uvicorn.Config(
        _inject_faults(_dispatch(hub), hub), port=0, log_level="critical", timeout_keep_alive=600
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    hub.address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield hub
    finally:
        server.should_exit = True
        thread.join()
