"""What a stranger on the web can do to a running app: raw requests, as no browser sends them."""

import asyncio
import http.client
import json
import os
import re
import shutil
import socket
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from threading import Thread
from urllib.parse import quote, urlsplit

import gradio as gr
import numpy as np
import pytest
from conftest import running_app
from gradio_client import Client
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_dicom import dicom

from fracture_lib.drawing import draw_film
from fracture_lib.hub import ModelSource
from fracture_lib.page import many_films, server, views
from fracture_lib.panel import Panel
from fracture_lib.preprocess import MAX_BYTES

ROOT = Path(__file__).parent.parent
API = "/gradio_api"
BOUNDARY = "b0undary"
SECRET = b"nobody may read this"
VERBS = {"predict": ["resnet50", 3, False], "compare": [3, False], "predict_batch": [3, False]}

App = namedtuple("App", "address log uploads secret")


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The running app, its log, the one folder that it may write to, and a file that is none of its own."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "uploads").mkdir()
    (folder / "secret.txt").write_bytes(SECRET)
    with running_app(folder / "log.txt", GRADIO_TEMP_DIR=str(folder / "uploads")) as address:
        yield App(address, folder / "log.txt", folder / "uploads", folder / "secret.txt")
    assert list((folder / "uploads").iterdir()) == []  # stopped, it leaves nothing


@pytest.fixture(scope="module")
def trap():
    """A web server on this machine that keeps what was asked of it, in `asked`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            trap.asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(SECRET)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    trap = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    trap.asked = []
    Thread(target=trap.serve_forever, daemon=True).start()
    yield trap
    trap.shutdown()


def connect(app):
    return http.client.HTTPConnection(urlsplit(app.address).netloc, timeout=120)


def ask(app, path, body=None, kind="application/json", method=None):
    """Status, headers and body of the answer to one request whose path is sent as it is."""
    connection = connect(app)
    connection.request(method or ("POST" if body is not None else "GET"), path, body, {"Content-Type": kind})
    answer = connection.getresponse()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()


def call(app, verb, data):
    """(event, what it holds) that a verb ends with; `data` is a list or JSON."""
    body = data if isinstance(data, bytes) else json.dumps({"data": data}).encode()
    status, _, told = ask(app, f"{API}/call/{verb}", body)
    assert status == 200, told
    _, _, told = ask(app, f"{API}/call/{verb}/{json.loads(told)['event_id']}")
    event, data = re.search(r"event: (complete|error)\ndata: (.*)", told.decode()).groups()
    return event, json.loads(data)


def part(name, content, field="files"):
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="'
    return head.encode() + name.encode() + b'"\r\n\r\n' + content + b"\r\n"


def upload(app, *parts):
    """Status and body of one upload."""
    body = b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
    status, _, told = ask(app, f"{API}/upload", body, f"multipart/form-data; boundary={BOUNDARY}")
    return status, json.loads(told) if status == 200 else told.decode()


def described(path):
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


def uploaded(app, name, content):
    status, [path] = upload(app, part(name, content))
    assert status == 200
    return described(path)


def files(app):
    return {path for path in app.uploads.rglob("*") if path.is_file()}


# ---- paths and addresses

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
def test_no_address_of_the_page_leads_out(app, trap, path):
    host = f"127.0.0.1:{trap.server_port}"
    names = {"secret": app.secret, "uploads": app.uploads, "root": ROOT, "trap": f"http://{host}/"}
    status, _, body = ask(app, path.format(**names, trap_host=host))
    assert SECRET not in body and b"import gradio" not in body and trap.asked == []
    assert status in (403, 404) or "deep_link" in path


@pytest.mark.parametrize(
    "path",
    [
        *("monitoring", "monitoring/summary", "login", "user"),
        *(f"gradio_api/{p}" for p in ("vibe-code", "vibe-edit", "undo-vibe-edit", "process_recording")),
        *(
            f"gradio_api/{p}"
            for p in ("deep_link?session_hash=x", "run-history/buckets", "runs", "dev/reload")
        ),
        *(f"gradio_api/{p}" for p in ("component_server", "api/predict", "profiling/traces")),
    ],
)
def test_routes_that_the_page_has_no_use_for_are_closed(app, path):
    for body in (None, b"{}"):
        assert ask(app, f"/{path}", body)[0] == 404


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_is_called_past_the_queue(app, film, verb):
    sent = uploaded(app, "film.png", film.read_bytes())
    data = [[sent] if verb == "predict_batch" else sent, *VERBS[verb]]
    status, _, told = ask(app, f"{API}/run/{verb}", json.dumps({"data": data}).encode())
    assert status == 404 and b"queue" in told
    assert call(app, verb, data)[0] == "complete"


@pytest.mark.parametrize("verb", VERBS)
def test_no_film_is_a_file_of_the_machine_or_an_address(app, trap, verb):
    mine = f"http://127.0.0.1:{trap.server_port}/film.png"
    for place in (
        *(app.secret, "/etc/passwd", ROOT / "app.py", "app.py", f"{app.uploads}/../secret.txt"),
        *(app.secret.as_uri(), mine, mine.replace("127.0.0.1", "localhost"), "http://169.254.169.254/latest"),
        *("", ".", "\0", "n" * 5000),
    ):
        film = [described(place)] if verb == "predict_batch" else described(place)
        event, told = call(app, verb, [film, *VERBS[verb]])
        assert event == "error" and told["error"].endswith("."), place
    event, told = call(app, verb, [{**described(""), "url": mine}, *VERBS[verb]])
    assert event == "error" and trap.asked == []


def test_an_address_in_place_of_any_other_input_is_not_fetched_either(app, trap):
    event, told = call(app, "predict", [None, described(f"http://127.0.0.1:{trap.server_port}/"), 3, False])
    assert event == "error" and "fetches no address" in told["error"] and trap.asked == []


def test_mcp_takes_uploads_and_data_but_no_file_and_no_address(app, trap, film):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    mine = uploaded(app, "film.png", film.read_bytes())["path"]
    films = {
        f"{app.address}{API}/file={quote(mine)}": True,
        f"http://127.0.0.1:{trap.server_port}/": False,
        f"{app.address}{API}/file={app.secret}": False,
        str(app.secret): False,
        app.secret.as_uri(): False,
        "data:text/plain;base64,bm8=": False,
    }

    async def talk():
        async with (
            streamable_http_client(f"{app.address}{API}/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return [await session.call_tool("predict", {"film": f, "model": "resnet50"}) for f in films]

    for answered, called in zip(films.values(), asyncio.run(talk()), strict=True):
        assert called.isError is not answered
        assert ("'probability'" in called.content[0].text) is answered
        assert SECRET.decode() not in called.content[0].text
    assert trap.asked == []


NAMES = ["../../out.png", "/etc/out.png", "..", "a\\..\\..\\out.png", "n\0.png", "%2e%2e%2fout.png", ".env"]
NAMES += ["n" * 300 + ".png", "<script>out</script>.png", "\u202egnp.out", "out\x1b[2J.png", ""]


@pytest.mark.parametrize("name", NAMES)
def test_no_name_of_a_file_leads_out_of_the_uploads(app, name):
    before = set(app.uploads.parent.iterdir())
    status, told = upload(app, part(name, os.urandom(20)), part("/", b"/etc", field="dir"))
    assert status == 400 or Path(told[0]).resolve().is_relative_to(app.uploads)
    assert set(app.uploads.parent.iterdir()) == before and len(list(app.uploads.iterdir())) == 1


# ---- headers


def test_every_answer_says_who_may_frame_it_and_nothing_uploaded_runs(app, film):
    paths = {"/": 200, "/config": 200, f"{API}/info": 200, "/nothing": 404}
    for name in ("page.html", "drawing.svg", "text.xml", "film.png"):
        paths[f"{API}/file=" + quote(uploaded(app, name, b"<script>alert(1)</script>")["path"])] = 200
    for path, expected in paths.items():
        status, headers, _ = ask(app, path)
        assert status == expected, path
        policy = headers["content-security-policy"]
        assert "frame-ancestors 'self' https://huggingface.co https://*.hf.space;" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin" and "camera=()" in headers["permissions-policy"]
        if "file=" in path:
            kind = headers["content-type"]
            assert kind == "image/png" or headers["content-disposition"].startswith("attachment")
            assert kind in ("image/png", "application/octet-stream")


# ---- sizes


def test_a_file_that_is_too_large_is_refused_and_nothing_of_it_stays(app):
    before = files(app)
    status, told = upload(app, part("small.png", b"0"), part("big.png", bytes(MAX_BYTES + 1)))
    assert status == 413 and str(MAX_BYTES) in told
    status, told = upload(app, *(part(f"{i}.png", b"0") for i in range(10_000)))
    assert status == 400 and "Too many files" in told
    assert files(app) == before


def in_chunks(app, path, kind, first, chunk, count):
    connection = connect(app)
    body = (first if i == 0 else chunk for i in range(count))
    connection.request("POST", path, body, {"Content-Type": kind}, encode_chunked=True)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_a_request_that_does_not_say_its_size_is_measured(app):
    before = files(app)
    head = part("big.png", b"").removesuffix(b"\r\n")
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    assert in_chunks(app, f"{API}/upload", kind, head, bytes(1_000_000), 70)[0] == 413
    assert files(app) == before
    status, told = in_chunks(app, f"{API}/call/predict", "application/json", b"[", b"[" * 100_000, 50)
    assert status == 413 and b"send at most 4 MB" in told
    assert in_chunks(app, f"{API}/mcp/", "application/json", b"[", b"[" * 100_000, 50)[0] == 413


def test_a_body_of_100_megabytes_is_refused_before_it_is_sent(app):
    for path in ("call/predict", "queue/join", "mcp/", "cancel"):
        connection = connect(app)
        connection.putrequest("POST", f"{API}/{path}")
        connection.putheader("Content-Length", "100000000")
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413 and b"send at most 4 MB" in answer.read()


def test_200_uploads_at_once_all_arrive(app):
    with ThreadPoolExecutor(50) as pool:
        told = list(pool.map(lambda i: upload(app, part("film.png", f"{i} at once".encode())), range(200)))
    assert {status for status, _ in told} == {200}
    assert len({path for _, [path] in told}) == 200


def test_uploads_leave_room_on_the_disk(monkeypatch, tmp_path):
    async def app(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})

    def statuses(path):
        sent = []

        async def receive():
            return {"type": "http.request", "body": b"0" * 100, "more_body": False}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": path, "headers": []}
        asyncio.run(server.guard(app)(scope, receive, send))
        return [message["status"] for message in sent if "status" in message]

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    assert statuses(f"{API}/upload") == [200]
    monkeypatch.setattr(server, "RESERVE", shutil.disk_usage(tmp_path).total + 1)
    assert statuses(f"{API}/upload") == [507]
    assert statuses(f"{API}/call/predict") == [200]


# ---- wrong requests

DEEP = [b"[" * depth + b"]" * depth for depth in (200, 900, 100_000)]
WRONG = {
    "film": [5, "film.png", [], {}, [[]], {"path": None}, described(None), True],
    "films": [5, "film.png", [5], [[[]]], [None], {}, [described("a"), [described("b")]]],
    "model": ["unknown", 5, None, [], {}, ["resnet50"]],
    "top_k": ["three", "NaN", -1, 0, 11, None, [], {}, 10**400],
}
RAW = [b"NaN", b"1e400", b"-1e400", b"Infinity", *DEEP]


@pytest.mark.parametrize("verb", VERBS)
def test_an_input_of_the_wrong_type_is_a_sentence(app, film, verb):
    several = verb == "predict_batch"
    good = uploaded(app, "film.png", film.read_bytes())
    data = [[good] if several else good, *VERBS[verb]]
    names = ["films" if several else "film", *(["model"] if verb == "predict" else []), "top_k"]
    cases = [[*data[:i], w, *data[i + 1 :]] for i, name in enumerate(names) for w in WRONG[name]]
    for case in [*cases, []]:
        event, told = call(app, verb, case)
        assert event == "error" and len(told["error"]) > 20, (case, told)
    for i in range(len(names)):
        for raw in RAW:
            text = [raw if i == j else json.dumps(value).encode() for j, value in enumerate(data)]
            body = b'{"data": [' + b",".join(text) + b"]}"
            if len(raw) > 2000:
                assert ask(app, f"{API}/call/{verb}", body)[0] == 400
            else:
                event, told = call(app, verb, body)
                assert event == "error" and len(told["error"]) > 20, (raw[:10], told)
    assert call(app, verb, data)[0] == "complete"


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
def test_a_request_that_fits_no_route_is_refused(app, path, body):
    status, headers, told = ask(app, f"{API}/{path}", json.dumps(body).encode())
    assert 400 <= status < 500 and headers["content-type"] == "application/json"
    assert json.loads(told)["detail"]


def test_an_answer_that_nobody_asked_for_is_cut_off_without_a_traceback(app):
    with pytest.raises(http.client.HTTPException):
        ask(app, f"{API}/call/predict/none")


def test_an_error_of_our_own_is_logged_without_its_message(monkeypatch, capsys):
    message = "cannot open Jane Doe.png"

    async def fail(*_, **__):
        raise OSError(message)

    monkeypatch.setattr(server.gr.Blocks, "process_api", fail)
    with pytest.raises(server.gr.Error, match="Something went wrong"):
        asyncio.run(server.Page().process_api(None, []))
    log = capsys.readouterr().err
    assert "Traceback" in log and "in fail" in log and "OSError" in log and "Jane" not in log


# ---- what is kept


def test_no_session_is_kept_of_a_call_that_names_none_and_a_small_one_of_others():
    with server.Page() as page:
        box = gr.Textbox()
        gr.Button().click(lambda text: text, box, box, api_name="echo")
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    sessions = page.state_holder.session_data
    try:
        for _ in range(3):
            assert call(App(address, None, None, None), "echo", ["a"]) == ("complete", ["a"])
        assert not sessions and not page.state_holder.time_last_used
        queue = page._queue
        assert len(queue.pending_event_ids_session) == len(queue.pending_messages_per_session) == 1
        client = Client(address, verbose=False)
        assert client.predict("b", api_name="/echo") == "b"
        [session] = sessions.values()
        assert list(session.components) == []  # what Gradio keeps for deep links
    finally:
        page.close()


def test_the_log_names_no_film_and_no_patient(app, film):
    telling = dicom(np.asarray(draw_film("Oblique")), PatientName="Doe^Jane", PatientID="MRN-471100815")
    broken = {"Jane Doe 1.dcm": telling, "Jane Doe 2.dcm": telling[:700], "Jane Doe 3.png": b"Jane Doe"}
    films = [uploaded(app, name, data) for name, data in broken.items()]
    for one in [*films, described("/home/Jane Doe.png"), "Jane Doe"]:
        call(app, "predict", [one, "resnet50", 3, False])
    event, told = call(app, "predict_batch", [films, 3, True])
    assert event == "complete" and [len(answer) > 2 for answer in told[0]] == [True, False, False]
    gone = uploaded(app, "Jane Doe 4.png", film.read_bytes())
    Path(gone["path"]).unlink()
    assert call(app, "predict", [gone, "resnet50", 3, False])[0] == "error"
    ask(app, f"{API}/file=/home/Jane%20Doe.png")
    log = app.log.read_text()
    assert "Running on" in log and not re.search("jane|doe|mrn|471100815", log, re.IGNORECASE)


def test_the_browser_keeps_no_history_of_films(app):
    config = json.loads(ask(app, "/config")[2])
    assert config["run_history"] is False


def test_sweeping_takes_what_is_old_and_leaves_what_is_kept(tmp_path, monkeypatch):
    kept, old = tmp_path / "example" / "kept.png", tmp_path / "a" / "b" / "old.png"
    outside = tmp_path.parent / "outside"
    outside.mkdir()
    for path in (kept, old, outside / "film.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"0")
    (tmp_path / "link").symlink_to(outside)
    server.sweep(tmp_path, 3600)
    assert old.exists()
    clock = time.time()
    for moved in (-7200, 7200):
        (old.parent / f"{moved}.png").write_bytes(b"0")
        monkeypatch.setattr(server.time, "time", lambda moved=moved: clock + moved)
        server.sweep(tmp_path, 3600, {kept, old})
        assert kept.exists() and old.exists() and not (old.parent / f"{moved}.png").exists()
    monkeypatch.undo()
    server.sweep(tmp_path, -1, {kept})
    assert kept.exists() and (outside / "film.png").exists()
    assert not (tmp_path / "link").is_symlink() and not old.exists()
    server.sweep(tmp_path, -1, {kept})
    assert sorted(tmp_path.rglob("*")) == [kept.parent, kept]


def test_whatever_was_uploaded_is_deleted_on_schedule(tmp_path, film):
    soon = "import app; app.CLEAN = (1, 3); app.main(app.Panel())"
    with running_app(
        tmp_path.parent / "clean.txt", command=["-c", soon], GRADIO_TEMP_DIR=str(tmp_path)
    ) as address:
        app = App(address, None, tmp_path, None)
        never_used = uploaded(app, "never-used.png", film.read_bytes())
        upload(app, part("stray.png", b"0", field="other"))
        head = f"POST {API}/upload HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n"
        head += f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
        with socket.create_connection(urlsplit(address).netloc.split(":")) as cut:
            cut.sendall(head.encode() + part("cut.png", b"0" * 5000))
        deadline = time.monotonic() + 240
        while left := [p for p in files(app) if not p.name.startswith(("drawn-", ".lock"))]:
            assert time.monotonic() < deadline, left
            time.sleep(0.2)
        assert not Path(never_used["path"]).exists()
        assert len(files(app)) == 5  # the examples, and what says that the folder is in use


# ---- what is shown

HOSTILE = "<script>hacked=1</script>\"'><img src=x onerror=hacked=1>\x07\u202egnp.{{7*7}}" + 250 * "n"


def tags(html):
    """Names of the elements in `html`, and of attributes that would run something."""
    found = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.extend([tag, *(name for name, _ in attributes)])
    parser.feed(html)
    return {name for name in found if name == "script" or name.startswith("on")}


def test_names_cards_and_failures_are_shown_as_they_are_written(film):
    panel = Panel()
    result = panel.ask(film, ["resnet50"], name=HOSTILE)
    source = ModelSource(Path(HOSTILE.replace("/", "")), "bundle", note=HOSTILE)
    lead = replace(result.predictions["resnet50"], source=source)
    failures = {"ensemble": HOSTILE}
    result = replace(result, predictions={"resnet50": lead}, failures=failures, notices=(HOSTILE,))
    for html in (
        views.answers(result, ["resnet50", "ensemble"], 3, panel.classifier),
        views.report([result], "today"),
        many_films._table([(HOSTILE, result, ""), (HOSTILE, None, HOSTILE)]),
        views.message(HOSTILE, "error"),
    ):
        assert tags(html) == set() and "&lt;script&gt;" in html and "{{7*7}}" in html


# ---- what is installed


def requirements():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def needed(requirement, done):
    """Names of all that a requirement brings here, but for what its parent pins exactly."""
    done.add(canonicalize_name(requirement.name))
    for extra in ("", *requirement.extras):
        for text in metadata.requires(requirement.name) or []:
            child = Requirement(text)
            here = not child.marker or child.marker.evaluate({"extra": extra})
            exact = str(child.specifier).startswith("==") and "*" not in str(child.specifier)
            if here and not exact and canonicalize_name(child.name) not in done:
                needed(child, done)
    return done


def test_every_requirement_is_pinned_with_all_that_it_brings():
    pinned = {canonicalize_name(r.name): str(r.specifier) for r in requirements()}
    assert all(re.fullmatch(r"==[\d.]+", version) for version in pinned.values())
    here = [r for r in requirements() if not r.marker or r.marker.evaluate()]
    brought = set().union(*(needed(r, set()) for r in here))
    assert brought - pinned.keys() == set()
    installed = {r.name: metadata.version(r.name).split("+")[0] for r in here}
    assert installed == {r.name: str(r.specifier).removeprefix("==") for r in here}
