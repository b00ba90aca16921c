"""A small Hub on loopback: real clients push to it and pull from it, and it fails on demand.

Knows nothing of this project. Point clients at it with HF_ENDPOINT, before their first import, and
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
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

LFS_SUFFIXES = {".onnx", ".keras", ".safetensors", ".parquet", ".png", ".jpg", ".bin", ".gz", ".zip"}


@dataclass
class Repository:
    kind: str  # "models", "datasets" or "spaces"
    id: str
    private: bool = False
    variables: dict = field(default_factory=dict)  # of a Space
    refs: dict = field(default_factory=dict)  # branch or pull request -> commit sha
    commits: dict = field(default_factory=dict)  # sha -> {path: Blob}

    def tree(self, revision):
        """Return (sha, files) of a branch, pull request or commit."""
        sha = self.refs.get(revision, revision)
        if sha not in self.commits:
            raise Refusal(404, "RevisionNotFound")
        return sha, self.commits[sha]

    def commit(self, files, branch="main"):
        listing = [branch, len(self.commits), *((path, blob.oid) for path, blob in sorted(files.items()))]
        sha = hashlib.sha1(json.dumps(listing).encode()).hexdigest()
        self.commits[sha], self.refs[branch] = files, sha
        return sha


@dataclass
class Blob:
    data: bytes
    lfs: bool

    @cached_property
    def oid(self):
        """Git's name of a regular file; the pointer's for a large one."""
        data = self.data
        if self.lfs:
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n"
            data = data.encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @cached_property
    def sha256(self):
        return hashlib.sha256(self.data).hexdigest()

    @property
    def etag(self):
        return self.sha256 if self.lfs else self.oid

    def describe(self):
        large = {"oid": self.sha256, "sha256": self.sha256, "size": len(self.data), "pointerSize": 134}
        return {"size": len(self.data), "oid": self.oid, "blobId": self.oid} | (
            {"lfs": large} if self.lfs else {}
        )


class Refusal(Exception):
    """An answer other than 200, with the Hub's code for it."""

    def __init__(self, status, code):
        super().__init__(code)
        self.response = JSONResponse({"error": code}, status, {"X-Error-Code": code, "X-Error-Message": code})


@dataclass
class Fault:
    method: str
    path: re.Pattern
    times: int
    status: int | None  # answer with this
    headers: dict
    close: bool  # close the connection instead of an answer
    cut: bool  # end the connection in the middle of the body
    corrupt: bool  # send other bytes than were asked for
    stall: float  # seconds to wait in the middle of the body
    seconds: float  # wait before the answer


class Hub:
    """The state of the server; tests look into it and add to it."""

    def __init__(self, token):
        self.token = token
        self.address = None
        self.repositories = {}  # (kind, id) -> Repository
        self.uploads = {}  # sha256 -> bytes of large files
        self.faults = []
        self.requests = []  # (method, path) of all that came

    def add(self, repo, files, kind="models", private=False):
        """Make or extend a repository from a folder or {path: bytes}; return the commit's sha."""
        if isinstance(files, Path):
            paths = [p for p in files.rglob("*") if p.is_file()]
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in paths}
        found = self.repositories.setdefault((kind, repo), Repository(kind, repo, private))
        before = found.tree("main")[1] if found.refs else {}
        added = {path: Blob(data, Path(path).suffix in LFS_SUFFIXES) for path, data in files.items()}
        return found.commit(before | added)

    def files(self, repo, revision="main", kind="models"):
        """{path: bytes} of a repository."""
        return {path: blob.data for path, blob in self.repositories[kind, repo].tree(revision)[1].items()}

    def fail(
        self,
        method,
        path,
        times=1,
        status=None,
        headers=None,
        close=False,
        cut=False,
        corrupt=False,
        stall=0.0,
        seconds=0.0,
    ):
        """Let the next `times` requests whose path holds the expression `path` fail."""
        expression = re.compile(path)
        self.faults.append(
            Fault(method, expression, times, status, headers or {}, close, cut, corrupt, stall, seconds)
        )

    def fault(self, method, path):
        for fault in self.faults:
            if fault.times > 0 and fault.method == method and fault.path.search(path):
                fault.times -= 1
                return fault
        return None


# ---- what each route answers: functions of the hub, the request and the groups of its path


def whoami(hub, request, body):
    return {"type": "user", "name": "someone", "orgs": [], "auth": {"accessToken": {"role": "write"}}}


def create(hub, request, body):
    wanted = json.loads(body)
    kind = f"{wanted.get('type') or 'model'}s"
    repo = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
    url = f"{hub.address}/{'' if kind == 'models' else kind + '/'}{repo}"
    if (kind, repo) in hub.repositories:
        return JSONResponse({"error": "it exists", "url": url}, 409)
    private = wanted.get("private") or wanted.get("visibility") == "private"
    found = hub.repositories[kind, repo] = Repository(kind, repo, bool(private))
    found.commit({".gitattributes": Blob(b"", False)})
    return {"url": url, "id": repo}


def validate_yaml(hub, request, body):
    content = json.loads(body)["content"].split("---\n")[1]
    try:
        data = yaml.safe_load(content)
    except yaml.YAMLError as error:
        return {"errors": [{"message": str(error)}], "warnings": []}
    return {"errors": [] if isinstance(data, dict) else [{"message": "no metadata"}], "warnings": []}


def preupload(hub, request, body, kind, repo, revision):
    repository(hub, request, kind, repo)
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


def lfs_batch(hub, request, body, kind, repo):
    objects = []
    for wanted in json.loads(body)["objects"]:
        answer = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in hub.uploads:
            answer["actions"] = {"upload": {"href": f"{hub.address}/lfs/{wanted['oid']}"}}
        objects.append(answer)
    return {"transfer": "basic", "objects": objects}


def lfs_put(hub, request, body, oid):
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refusal(422, "WrongChecksum")
    hub.uploads[oid] = body
    return {}


def commit(hub, request, body, kind, repo, revision):
    found = repository(hub, request, kind, repo)
    lines = [json.loads(line) for line in body.splitlines() if line.strip()]
    header = next(line["value"] for line in lines if line["key"] == "header")
    sha, files = found.tree(revision)
    if header.get("parentCommit") not in (None, sha):
        raise Refusal(412, "PreconditionFailed")
    files = dict(files)  # all of the commit or nothing
    for line in lines:
        value = line["value"]
        match line["key"]:
            case "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            case "lfsFile":
                if value["oid"] not in hub.uploads:
                    raise Refusal(400, "LfsObjectMissing")
                files[value["path"]] = Blob(hub.uploads[value["oid"]], True)
            case "deletedFile":
                files.pop(value["path"], None)
            case "deletedFolder":
                files = {p: b for p, b in files.items() if not p.startswith(value["path"].rstrip("/") + "/")}
    branch, answer = revision, {}
    if request.query_params.get("create_pr"):
        number = 1 + sum(ref.startswith("refs/pr/") for ref in found.refs)
        branch, answer = f"refs/pr/{number}", {"pullRequestUrl": f"{hub.address}/{repo}/discussions/{number}"}
    sha = found.commit(files, branch)
    return {"success": True, "commitOid": sha, "commitUrl": f"{hub.address}/{repo}/commit/{sha}", **answer}


def info(hub, request, body, kind, repo, revision="main"):
    found = repository(hub, request, kind, repo)
    sha, files = found.tree(revision)
    siblings = [{"rfilename": path, **blob.describe()} for path, blob in files.items()]
    return {
        "id": repo,
        "modelId": repo,
        "sha": sha,
        "private": found.private,
        "siblings": siblings,
        "tags": [],
    }


def tree(hub, request, body, kind, repo, revision, below=""):
    _, files = repository(hub, request, kind, repo).tree(revision)
    recursive = request.query_params.get("recursive", "").lower() in ("1", "true")
    start = f"{below}/" if below else ""
    entries, folders = [], set()
    for path, blob in files.items():
        if path.startswith(start):
            parts = path[len(start) :].split("/")
            folders |= {start + "/".join(parts[: i + 1]) for i in range(len(parts) - 1)}
            if recursive or len(parts) == 1:
                entries.append({"type": "file", "path": path, **blob.describe()})
    folders = {f for f in folders if recursive or "/" not in f[len(start) :]}
    if below and not entries and not folders:
        raise Refusal(404, "EntryNotFound")
    return [{"type": "directory", "path": f, "oid": "0" * 40, "size": 0} for f in sorted(folders)] + entries


def refs(hub, request, body, kind, repo):
    found = repository(hub, request, kind, repo)
    names = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": sha} for n, sha in found.refs.items()]
    return {"branches": names, "tags": [], "converts": []}


def paths_info(hub, request, body, kind, repo, revision):
    _, files = repository(hub, request, kind, repo).tree(revision)
    if request.headers.get("content-type", "").startswith("application/json"):
        wanted = json.loads(body)["paths"]
    else:
        wanted = [unquote(p.partition("=")[2]) for p in body.decode().split("&") if p.startswith("paths=")]
    wanted = [wanted] if isinstance(wanted, str) else wanted
    entries = [{"type": "file", "path": p, **files[p].describe()} for p in wanted if p in files]
    folders = [p for p in wanted if p not in files and any(f.startswith(p + "/") for f in files)]
    return entries + [{"type": "directory", "path": p, "oid": "0" * 40, "size": 0} for p in folders]


def resolve(hub, request, body, kind, repo, revision, path):
    sha, files = repository(hub, request, kind, repo).tree(revision)
    if path not in files:
        raise Refusal(404, "EntryNotFound")
    blob = files[path]
    headers = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
    if blob.lfs:
        headers |= {"X-Linked-ETag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))}
    data, status = blob.data, 200
    if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", "")):
        first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        data, status = data[first : last + 1], 206
    return Response(data, status, headers, "application/octet-stream")


def variables(hub, request, body, kind, repo):
    wanted = json.loads(body)
    repository(hub, request, kind, repo).variables[wanted["key"]] = wanted["value"]
    return {}


def repository(hub, request, kind, repo):
    found = hub.repositories.get((kind or "models", repo))
    if found is None or (found.private and not signed_in(hub, request)):
        raise Refusal(404 if signed_in(hub, request) else 401, "RepoNotFound")
    return found


def signed_in(hub, request):
    return request.headers.get("authorization") == f"Bearer {hub.token}"


_API, _ID = r"/api/(models|datasets|spaces)", r"([^/]+/[^/]+)"
_GIT = rf"/(?:(datasets|spaces)/)?{_ID}"
ROUTES = [  # method, path before unquoting, answer, needs a token
    ("GET", r"/api/whoami-v2", whoami, True),
    ("POST", r"/api/repos/create", create, True),
    ("POST", r"/api/validate-yaml", validate_yaml, False),
    ("POST", rf"{_API}/{_ID}/preupload/([^/]+)", preupload, True),
    ("POST", rf"{_API}/{_ID}/commit/([^/]+)", commit, True),
    ("POST", rf"{_API}/{_ID}/paths-info/([^/]+)", paths_info, False),
    ("GET", rf"{_API}/{_ID}/tree/([^/]+)(?:/(.+))?", tree, False),
    ("GET", rf"{_API}/{_ID}/refs", refs, False),
    ("POST", rf"{_API}/{_ID}/variables", variables, True),
    ("GET", rf"{_API}/{_ID}/revision/([^/]+)", info, False),
    ("GET", rf"{_API}/{_ID}", info, False),
    ("POST", rf"{_GIT}\.git/info/lfs/objects/batch", lfs_batch, True),
    ("PUT", r"/lfs/([0-9a-f]{64})", lfs_put, False),
    ("GET", rf"{_GIT}/resolve/([^/]+)/(.+)", resolve, False),
]


def _dispatch(hub):
    async def endpoint(request):
        path = request.scope["raw_path"].decode().split("?")[0]
        method = "GET" if request.method == "HEAD" else request.method
        for verb, expression, answer, needs_token in ROUTES:
            if verb == method and (found := re.fullmatch(expression, path)):
                try:
                    if needs_token and not signed_in(hub, request):
                        raise Refusal(401, "Unauthorized")
                    groups = [unquote(group) if group else group for group in found.groups()]
                    while groups and groups[-1] is None:
                        groups.pop()
                    result = answer(hub, request, await request.body(), *groups)
                except Refusal as refusal:
                    return refusal.response
                return result if isinstance(result, Response) else JSONResponse(result)
        return JSONResponse({"error": f"no route {request.method} {path}"}, 404)

    return Starlette(routes=[Route("/{path:path}", endpoint, methods=["GET", "HEAD", "POST", "PUT"])])


def _faulty(app, hub):
    """Wrap an ASGI app: keep a list of requests, and do to them what the hub's faults say."""

    async def wrapped(scope, receive, send):
        if scope["type"] != "http":
            return await app(scope, receive, send)
        hub.requests.append((scope["method"], scope["path"]))
        fault = hub.fault(scope["method"], scope["path"])
        if fault is None:
            return await app(scope, receive, send)
        await asyncio.sleep(fault.seconds)
        if fault.status:
            refused = JSONResponse({"error": "on demand"}, fault.status, fault.headers)
            return await refused(scope, receive, send)
        if fault.close:
            send.__self__.transport.abort()  # uvicorn's own: ASGI has no word for it
            return await asyncio.sleep(0.1)  # until uvicorn has seen that nobody waits for an answer

        async def spoilt(message):
            body = message.get("body", b"")
            if body and fault.cut:
                await send({**message, "body": body[: len(body) // 2], "more_body": True})
                raise ConnectionError("cut on demand")  # uvicorn closes the connection
            if body and fault.stall:
                half = len(body) // 2
                await send({**message, "body": body[:half], "more_body": True})
                await asyncio.sleep(fault.stall)
                message = {**message, "body": body[half:]}
            if body and fault.corrupt:
                message = {**message, "body": body[:-1] + bytes([body[-1] ^ 1])}
            await send(message)

        return await app(scope, receive, spoilt)

    return wrapped


@contextlib.contextmanager
def serve(token="hf_test"):
    """Run a Hub in a thread; yield it, with its `address`."""
    hub = Hub(token)
    config = uvicorn.Config(
        _faulty(_dispatch(hub), hub), port=0, log_level="critical", timeout_keep_alive=600
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
