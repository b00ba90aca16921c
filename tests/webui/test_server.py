"""What anyone on the web can send to a running page, and what the page keeps."""

import asyncio
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

import numpy as np
import pytest

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import FractureError
from fracture_lib.io.image import MAX_BYTES
from fracture_lib.webui import server
from fracture_lib.webui.examples import EXAMPLES
from tests.helpers.app_client import API, MULTIPART, App, file_data, mcp_session, part
from tests.helpers.app_runner import running_app
from tests.helpers.dicom_files import dicom

ROOT = Path(__file__).parent.parent.parent
SECRET = b"nobody may read this"
UNREADABLE = (SECRET, b"from fracture_lib.webui.launch import", b"import gradio")  # also app.py and Gradio
# endpoint -> its inputs after the image
ENDPOINTS: dict[str, list[Any]] = {
    "predict": ["resnet50", 3, False],
    "compare": [3, False],
    "predict_batch": [3, False],
}


@pytest.fixture(scope="module")
def secret(tmp_path_factory) -> Path:
    """A file beside the upload folder that no request may read."""
    path = tmp_path_factory.mktemp("app") / "secret.txt"
    path.write_bytes(SECRET)
    return path


@pytest.fixture(scope="module")
def app(secret) -> Iterator[App]:
    """A running page with folders of its own, in which it leaves no upload and no telemetry."""
    uploads, log = secret.parent / "uploads", secret.parent / "log.txt"
    uploads.mkdir()
    home = secret.parent / "home"
    home.mkdir()
    with running_app(log, GRADIO_TEMP_DIR=str(uploads), HOME=str(home)) as url:
        yield App(url, uploads, log)
    assert list(uploads.iterdir()) == []
    assert not list(home.rglob("onnxruntime*")), "ONNX Runtime collects telemetry"


class Trap(ThreadingHTTPServer):
    """A web server that records the paths that are requested from it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _TrapHandler)
        self.requested: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}/"


class _TrapHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Trap)
        self.server.requested.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(SECRET)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def trap() -> Iterator[Trap]:
    trap = Trap()
    Thread(target=trap.serve_forever, daemon=True).start()
    yield trap
    trap.shutdown()


# Paths and URLs

ESCAPES = [
    f"{API}/file={{secret}}",
    f"{API}/file={{uploads}}/../secret.txt",
    f"{API}/file={{root}}/app.py",
    f"{API}/file=app.py",
    f"{API}/file=file://{{secret}}",
    f"{API}/file={{trap}}",
    f"{API}/file=http:%2F%2F{{trap_host}}",
    f"{API}/file/{{secret}}",
    f"{API}/proxy={{trap}}",
    f"{API}/custom_component/0/client/component/..%2f..%2f{{secret}}",
    f"{API}/stream/..%2f..%2f/{{secret}}",
    f"{API}/mcp/..{{secret}}",
    "/static/../../../../../../../../..{secret}",
    "/assets/%2e%2e/%2e%2e/%2e%2e/routes.py",
    "/svelte/..%2f..%2f..%2f..%2froutes.py",
    "/config?deep_link=../../secret",
    "/?deep_link=..%2f..%2fsecret.txt",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_request_with_path_outside_the_page_reads_nothing(app, secret, trap, path):
    path = path.format(
        secret=secret, uploads=app.uploads, root=ROOT, trap=trap.url, trap_host=urlsplit(trap.url).netloc
    )
    status, _, body = app.request(path)
    assert not any(content in body for content in UNREADABLE)
    assert trap.requested == []
    assert status in (403, 404) or "deep_link" in path


CLOSED_ROUTES = [
    *("monitoring", "monitoring/summary", "login", "user"),
    *(
        f"gradio_api/{name}"
        for name in (
            *("vibe-code", "vibe-edit", "undo-vibe-edit", "process_recording", "component_server"),
            *("deep_link?session_hash=x", "run-history/buckets", "runs", "dev/reload", "api/predict"),
            "profiling/traces",
        )
    ),
]


@pytest.mark.parametrize("path", CLOSED_ROUTES)
def test_request_to_closed_route_gets_404(app, path):
    for body in (None, b"{}"):
        assert app.request(f"/{path}", body).status == 404


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_endpoint_called_past_the_queue_is_rejected(app, image_path, endpoint):
    image = app.upload_file("image.png", image_path.read_bytes())
    data = [[image] if endpoint == "predict_batch" else image, *ENDPOINTS[endpoint]]
    status, _, _ = app.request(f"{API}/run/{endpoint}", json.dumps({"data": data}).encode())
    assert status == 404
    assert app.call(endpoint, data)[0] == "complete"


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_endpoint_with_local_path_or_url_as_image_returns_error(app, secret, trap, endpoint):
    url = f"{trap.url}image.png"
    for location in (
        *(secret, "/etc/passwd", ROOT / "app.py", "app.py", f"{app.uploads}/../secret.txt"),
        *(secret.as_uri(), url, url.replace("127.0.0.1", "localhost"), "http://169.254.169.254/latest"),
        *("", ".", "\0", "n" * 5000),
    ):
        image: Any = file_data(location)
        event, answer = app.call(
            endpoint, [[image] if endpoint == "predict_batch" else image, *ENDPOINTS[endpoint]]
        )
        assert event == "error" and answer["error"].endswith("."), location
    event, _ = app.call(endpoint, [{**file_data(""), "url": url}, *ENDPOINTS[endpoint]])
    assert event == "error" and trap.requested == []


def test_endpoint_with_url_as_model_fetches_nothing(app, trap):
    event, answer = app.call("predict", [None, file_data(trap.url), 3, False])
    assert event == "error" and answer["error"] == "URLs are not accepted; upload the file."
    assert trap.requested == []


def test_mcp_tool_accepts_uploads_but_no_local_path_and_no_url(app, secret, trap, image_path):
    uploaded = app.upload_file("image.png", image_path.read_bytes())["path"]
    accepted = {
        f"{app.url}{API}/file={quote(uploaded)}": True,
        trap.url: False,
        f"{app.url}{API}/file={secret}": False,
        str(secret): False,
        secret.as_uri(): False,
        "data:text/plain;base64,bm8=": False,
    }

    async def call_all() -> list[Any]:
        async with mcp_session(app.url) as session:
            return [
                await session.call_tool("classify_fracture", {"image": image, "model": "resnet50"})
                for image in accepted
            ]

    for is_accepted, result in zip(accepted.values(), asyncio.run(call_all()), strict=True):
        text = result.content[0].text
        assert result.isError is not is_accepted
        assert ('"probability"' in text) is is_accepted
        assert SECRET.decode() not in text
    assert trap.requested == []


FILE_NAMES = ["../../out.png", "/etc/out.png", "..", "a\\..\\..\\out.png", "n\0.png", "%2e%2e%2fout.png", ""]
FILE_NAMES += ["n" * 300 + ".png", "<script>out</script>.png", "\u202egnp.out", "out\x1b[2J.png", ".env"]


@pytest.mark.parametrize("name", FILE_NAMES)
def test_upload_with_hostile_file_name_stays_in_the_upload_folder(app, name):
    before = set(app.uploads.parent.iterdir())
    status, answer = app.upload(part(name, os.urandom(20)), part("/", b"/etc", field="dir"))
    assert status == 400 or Path(answer[0]).resolve().is_relative_to(app.uploads)
    assert set(app.uploads.parent.iterdir()) == before and len(list(app.uploads.iterdir())) == 1


# Headers


def test_every_response_restricts_frames_and_runs_nothing_uploaded(app):
    expected_status = {"/": 200, "/config": 200, f"{API}/info": 200, "/nothing": 404}
    for name in ("page.html", "drawing.svg", "text.xml", "image.png"):
        uploaded = app.upload_file(name, b"<script>alert(1)</script>")["path"]
        expected_status[f"{API}/file=" + quote(uploaded)] = 200
    for path, expected in expected_status.items():
        status, headers, _ = app.request(path)
        assert status == expected, path
        policy = headers["content-security-policy"]
        assert "frame-ancestors 'self' https://huggingface.co https://*.hf.space;" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin" and "camera=()" in headers["permissions-policy"]
        if "file=" in path:
            content_type = headers["content-type"]
            assert content_type in ("image/png", "application/octet-stream")
            assert content_type == "image/png" or headers["content-disposition"].startswith("attachment")


# Sizes


def test_start_page_is_sent_compressed(app):
    with urlopen(Request(app.url, headers={"Accept-Encoding": "gzip"}), timeout=120) as response:
        assert response.headers["Content-Encoding"] == "gzip" and len(response.read()) < 60_000


def test_upload_of_too_large_file_is_rejected_and_leaves_nothing(app):
    before = app.files()
    status, answer = app.upload(part("small.png", b"0"), part("big.png", bytes(MAX_BYTES + 1)))
    assert status == 413 and str(MAX_BYTES) in answer
    status, answer = app.upload(*(part(f"{i}.png", b"0") for i in range(10_000)))
    assert status == 400 and "Too many files" in answer
    assert app.files() == before


def test_request_of_unannounced_size_is_measured_and_rejected(app):
    before = app.files()
    head = part("big.png", b"").removesuffix(b"\r\n")
    upload = app.request_in_chunks(f"{API}/upload", [head, *[bytes(1_000_000)] * 69], MULTIPART)
    assert upload.status == 413
    assert app.files() == before
    for path, limit in (("call/predict", 4), ("mcp/", 8)):
        chunks = [b"[" * 100_000] * (limit * 10 + 9)
        response = app.request_in_chunks(f"{API}/{path}", chunks, "application/json")
        assert response.status == 413 and f"the limit is {limit} MB".encode() in response.body


@pytest.mark.parametrize("path", ["call/predict", "queue/join", "mcp/", "cancel"])
def test_request_of_100_megabytes_is_rejected_before_it_is_sent(app, path):
    response = app.announce(f"{API}/{path}", 100_000_000)
    limit = b"8 MB" if path == "mcp/" else b"4 MB"
    assert response.status == 413 and b"the limit is " + limit in response.body


def test_200_concurrent_uploads_all_arrive(app):
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda i: app.upload(part("image.png", f"{i}".encode())), range(200)))
    assert {status for status, _ in answers} == {200}
    assert len({paths[0] for _, paths in answers}) == 200


def guarded_status(path: str, upload_dir: Path, error: Exception | None = None) -> list[int]:
    """Send 100 bytes through a RequestGuard to an app that reads them; return the statuses sent."""
    sent = []

    async def inner_app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        if error:
            raise error
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return {"type": "http.request", "body": b"0" * 100, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    asyncio.run(server.RequestGuard(inner_app, upload_dir)(scope, receive, send))
    return [message["status"] for message in sent if "status" in message]


def test_request_guard_with_full_disk_rejects_only_uploads(monkeypatch, tmp_path):
    assert guarded_status(f"{API}/upload", tmp_path) == [200]
    monkeypatch.setattr(server, "RESERVED_DISK", shutil.disk_usage(tmp_path).total + 1)
    assert guarded_status(f"{API}/upload", tmp_path) == [507]
    assert guarded_status(f"{API}/call/predict", tmp_path) == [200]


def test_request_guard_without_upload_folder_creates_it_again(tmp_path):
    uploads = tmp_path / "gone" / "uploads"
    assert guarded_status(f"{API}/upload", uploads) == [200] and uploads.is_dir()


@pytest.mark.parametrize("path", ["upload", "call/predict", "mcp/"])
def test_request_guard_that_cannot_create_the_upload_folder_gets_503(tmp_path, path):
    (tmp_path / "file").write_bytes(b"0")
    assert guarded_status(f"{API}/{path}", tmp_path / "file" / "uploads") == [503]


@pytest.mark.parametrize(
    ("path", "error", "status"),
    [("call/predict", ValueError, 400), ("call/predict", OSError, 400), ("upload", OSError, 507)],
)
def test_request_guard_with_failing_app_hides_the_error(tmp_path, caplog, path, error, status):
    assert guarded_status(f"{API}/{path}", tmp_path, error("cannot open Jane Doe.png")) == [status]
    assert error.__name__ in caplog.text and "Jane" not in caplog.text


# Invalid requests

NESTED = [b"[" * depth + b"]" * depth for depth in (200, 900, 100_000)]
WRONG_VALUES: dict[str, list[Any]] = {
    "image": [5, "image.png", [], {}, [[]], {"path": None}, file_data(None), True],
    "images": [5, "image.png", [5], [[[]]], [None], {}, [file_data("a"), [file_data("b")]]],
    "model": ["unknown", 5, None, [], {}, ["resnet50"]],
    "top_k": ["three", "NaN", -1, 0, 11, None, [], {}, 10**400],
}
WRONG_JSON = [b"NaN", b"1e400", b"-1e400", b"Infinity", *NESTED]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_endpoint_with_input_of_wrong_type_returns_error_message(app, image_path, endpoint):
    is_batch = endpoint == "predict_batch"
    image = app.upload_file("image.png", image_path.read_bytes())
    data = [[image] if is_batch else image, *ENDPOINTS[endpoint]]
    names = ["images" if is_batch else "image", *(["model"] if endpoint == "predict" else []), "top_k"]
    cases = [[*data[:i], wrong, *data[i + 1 :]] for i, n in enumerate(names) for wrong in WRONG_VALUES[n]]
    for case in [*cases, []]:
        event, answer = app.call(endpoint, case)
        assert event == "error" and len(answer["error"]) > 20, (case, answer)
    for i in range(len(names)):
        for wrong in WRONG_JSON:
            values = [wrong if i == j else json.dumps(value).encode() for j, value in enumerate(data)]
            body = b'{"data": [' + b",".join(values) + b"]}"
            if len(wrong) > 2000:
                assert app.request(f"{API}/call/{endpoint}", body).status == 400
            else:
                event, answer = app.call(endpoint, body)
                assert event == "error" and len(answer["error"]) > 20, (wrong[:10], answer)
    assert app.call(endpoint, data)[0] == "complete"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("call/nothing", {"data": []}),
        ("call/v2/nothing", {}),
        ("call/v2/predict", {"nothing": 1}),
        ("queue/join", {"data": [], "fn_index": 9999, "session_hash": "a"}),
        ("queue/join", {"data": [], "fn_index": "one", "session_hash": "a"}),
        ("queue/join", {"data": [], "session_hash": "a"}),
        ("queue/join", []),
        ("cancel", {}),
        ("upload?upload_id=a", {}),
    ],
)
def test_request_that_fits_no_route_gets_json_error(app, path, body):
    status, headers, answer = app.request(f"{API}/{path}", json.dumps(body).encode())
    assert 400 <= status < 500 and headers["content-type"] == "application/json"
    assert json.loads(answer)["detail"]


def test_result_of_unknown_event_is_cut_off_without_traceback(app):
    with pytest.raises(HTTPException):  # `running_app` checks the log
        app.request(f"{API}/call/predict/none")


# Privacy


def test_log_after_good_and_bad_images_names_no_file_and_no_patient(app, image_path):
    pixels = np.asarray(synthetic_radiograph("Oblique"))
    image = dicom(pixels, PatientName="Doe^Jane", PatientID="MRN-471100815")
    contents = {"Jane Doe 1.dcm": image, "Jane Doe 2.dcm": image[:700], "Jane Doe 3.png": b"Jane Doe"}
    images = [app.upload_file(name, content) for name, content in contents.items()]
    for each in [*images, file_data("/home/Jane Doe.png"), "Jane Doe"]:
        app.call("predict", [each, "resnet50", 3, False])
    event, [results] = app.call("predict_batch", [images, 3, True])
    assert event == "complete" and ["error" in result for result in results] == [False, True, True]
    expired = app.upload_file("Jane Doe 4.png", image_path.read_bytes())
    Path(expired["path"]).unlink()
    assert app.call("predict", [expired, "resnet50", 3, False])[0] == "error"
    app.request(f"{API}/file=/home/Jane%20Doe.png")
    log = app.log.read_text()
    assert "Running on" in log and not re.search("jane|doe|mrn|471100815", log, re.IGNORECASE)


def test_config_disables_the_browsers_run_history(app):
    assert json.loads(app.request("/config").body)["run_history"] is False


# Cleaning


def test_delete_expired_deletes_old_files_and_keeps_new_and_listed_ones(tmp_path, monkeypatch):
    kept, old = tmp_path / "example" / "kept.png", tmp_path / "a" / "b" / "old.png"
    outside = tmp_path.parent / "outside"
    outside.mkdir()
    for path in (kept, old, outside / "image.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0")
    (tmp_path / "link").symlink_to(outside)
    server.delete_expired(tmp_path, 3600)
    assert old.exists()
    now = time.time()
    for shift in (-7200, 7200):  # also when the clock was set back
        shifted = old.parent / f"{shift}.png"
        shifted.write_bytes(b"0")
        monkeypatch.setattr(server.time, "time", lambda shift=shift: now + shift)
        server.delete_expired(tmp_path, 3600, {kept, old})
        assert kept.exists() and old.exists() and not shifted.exists()
    monkeypatch.undo()
    server.delete_expired(tmp_path, -1, {kept})
    assert kept.exists() and (outside / "image.png").exists()
    assert not (tmp_path / "link").is_symlink() and not old.exists()
    server.delete_expired(tmp_path, -1, {kept})
    assert sorted(tmp_path.rglob("*")) == [kept.parent, kept]


def test_check_not_expired_with_deleted_file_raises(image_path, tmp_path):
    server.check_not_expired([str(image_path)])
    with pytest.raises(FractureError, match=r"Your upload has expired\. Please upload it again\."):
        server.check_not_expired([str(image_path), str(tmp_path / "gone.png")])


@pytest.mark.slow
def test_page_whose_upload_folder_was_deleted_says_so_once_and_accepts_the_next_upload(tmp_path, image_path):
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    with running_app(tmp_path / "log.txt", GRADIO_TEMP_DIR=str(uploads)) as url:
        app = App(url, uploads)
        inputs = [app.upload_file("image.png", image_path.read_bytes()), "resnet50", 3, False]
        shutil.rmtree(uploads)
        event, answer = app.call("predict", inputs)
        assert event == "error"
        assert answer["error"] == "Your upload has expired. Please upload it again."
        shutil.rmtree(uploads)
        inputs[0] = app.upload_file("image.png", image_path.read_bytes())
        assert app.call("predict", inputs)[0] == "complete"


@pytest.mark.slow
def test_uploads_of_every_kind_are_deleted_on_schedule(tmp_path, image_path):
    fast = "from fracture_lib.webui import launch; launch.CLEANUP_INTERVAL = 1; launch.MAX_UPLOAD_AGE = 3"
    log, uploads = tmp_path / "log.txt", tmp_path / "uploads"
    uploads.mkdir()
    with running_app(log, command=["-c", f"{fast}; launch.main()"], GRADIO_TEMP_DIR=str(uploads)) as url:
        app = App(url, uploads)
        kept = set(app.files())
        assert len(kept) == 1 + len(EXAMPLES)  # a lock and thumbnails
        never_used = app.upload_file("never-used.png", image_path.read_bytes())
        app.upload(part("stray.png", b"0", field="other"))
        head = f"POST {API}/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n"
        head += f"Content-Type: {MULTIPART}\r\n\r\n"
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as aborted:
            aborted.sendall(head.encode() + part("aborted.png", b"0" * 5000))
        deadline = time.monotonic() + 240
        while left := set(app.files()) - kept:
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
        assert not Path(never_used["path"]).exists()
        assert set(app.files()) == kept
