"""The part of the Hub that downloads use, on loopback: one public model repository from a folder.

Knows nothing of this project. Real `huggingface_hub` clients talk to it through HF_ENDPOINT.
"""

import contextlib
import hashlib
import threading
import time

import uvicorn
from starlette.applications import Starlette
from starlette.responses import FileResponse, JSONResponse
from starlette.routing import Route


def _app(folder, repo, sha):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    names = [p.relative_to(folder).as_posix() for p in files]

    def missing(code):
        return JSONResponse({"error": code}, status_code=404, headers={"X-Error-Code": code})

    def known(request, revision):
        return request.path_params["repo"] == repo and revision in ("main", sha)

    def info(request):
        if not known(request, request.path_params["revision"]):
            return missing("RepoNotFound" if request.path_params["repo"] != repo else "RevisionNotFound")
        return JSONResponse(
            {"id": repo, "sha": sha, "private": False, "siblings": [{"rfilename": n} for n in names]}
        )

    def tree(request):
        if not known(request, request.path_params["revision"]):
            return missing("RevisionNotFound")
        entries = [
            {"type": "file", "path": n, "size": p.stat().st_size, "oid": hashlib.sha1(n.encode()).hexdigest()}
            for n, p in zip(names, files, strict=True)
        ]
        return JSONResponse(entries)

    def resolve(request):
        name = request.path_params["name"]
        if not known(request, request.path_params["revision"]):
            return missing("RevisionNotFound")
        if name not in names:
            return missing("EntryNotFound")
        path = folder / name
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return FileResponse(path, headers={"ETag": f'"{digest}"', "X-Repo-Commit": sha})

    return Starlette(
        routes=[
            Route("/api/models/{repo:path}/revision/{revision}", info),
            Route("/api/models/{repo:path}/tree/{revision}", tree),
            Route("/{repo:path}/resolve/{revision}/{name:path}", resolve, methods=["GET", "HEAD"]),
        ]
    )


@contextlib.contextmanager
def serve(folder, repo, sha):
    """Serve `folder` as the repository `repo` at commit `sha`; yield the address of the Hub."""
    server = uvicorn.Server(uvicorn.Config(_app(folder, repo, sha), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
