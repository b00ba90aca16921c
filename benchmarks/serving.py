"""The page under load: `python -m benchmarks.serving`: cold start, then 1, 8 and 32 visitors, or a soak.

Starts `python app.py` in a process of its own and asks /compare over plain HTTP, as light a client as can be,
since it shares the cores. Each visitor sends a film of its own, waits for the answer and sends it again. The
CPU time an answer costs the server is the figure that a busy machine changes least. Linux only.
"""

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from time import monotonic, perf_counter, sleep

from threadpoolctl import threadpool_limits

from benchmarks.inference import draw_dicom, draw_jpeg
from fracture_lib.drawing import draw_film
from fracture_lib.labels import CLASSES
from fracture_lib.panel import Panel

ROOT = Path(__file__).parent.parent
TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def running_app(log):
    """Yield (process, port) of the page, which has answered once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = subprocess.Popen(
        [sys.executable, "app.py"],
        cwd=ROOT,
        env={**os.environ, "GRADIO_SERVER_PORT": str(port)},
        stdout=log,
        stderr=log,
    )
    try:
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=60).close()
                break
            except OSError:
                if app.poll() is not None:
                    raise SystemExit(f"The app did not start: see {log.name}.") from None
                sleep(0.05)
        yield app, port
    finally:
        app.terminate()
        app.wait()


def ask(connection, name, data):
    """Upload a film, ask all models; return "answered", "busy", "refused" (in a sentence) or what came."""
    body = (
        f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
        + data
        + b"\r\n--x--\r\n"
    )
    [path] = json.loads(
        _send(connection, "POST", "/upload", body, {"Content-Type": "multipart/form-data; boundary=x"})[1]
    )
    question = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, 3, False]}
    status, told = _send(
        connection,
        "POST",
        "/call/compare",
        json.dumps(question).encode(),
        {"Content-Type": "application/json"},
    )
    if status == 503:
        return "busy"
    events = _send(connection, "GET", f"/call/compare/{json.loads(told)['event_id']}")[1].decode()
    if "event: complete" in events:
        return "answered"
    told = json.loads(events.strip().rpartition("data: ")[2])
    return "refused" if told and told["error"] else events


def _send(connection, method, path, body=None, headers=None):
    connection.request(method, f"/gradio_api{path}", body, headers or {})
    response = connection.getresponse()
    return response.status, response.read()


def visit(port, films, seconds):
    """Ask about `films` in turn, again and again; return ([seconds of each answer], Counter of outcomes)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    times, outcomes = [], Counter()
    end = monotonic() + seconds
    while monotonic() < end:
        name, data = films[len(times) % len(films)]
        start = perf_counter()
        try:
            outcome = ask(connection, name, data)
        except Exception as error:  # whatever goes wrong on the way is a visitor's error
            outcome = repr(error)
            connection.close()
        outcomes[outcome] += 1
        times.append(perf_counter() - start)
    return times, outcomes


def crowd(port, films, visitors, seconds):
    """Let `visitors` visit at once, each beginning with another film."""
    with ThreadPoolExecutor(visitors) as pool:
        turned = [films[i % len(films) :] + films[: i % len(films)] for i in range(visitors)]
        done = list(pool.map(lambda some: visit(port, some, seconds), turned))
    return sorted(t for times, _ in done for t in times), sum((o for _, o in done), Counter())


def cpu_seconds(app):
    fields = Path(f"/proc/{app.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS  # utime and stime


def status(app):
    """Memory now and at most in MB, threads and open files of a process."""
    text = Path(f"/proc/{app.pid}/status").read_text()
    now, most, threads = (int(text.split(f"{e}:")[1].split()[0]) for e in ("VmRSS", "VmHWM", "Threads"))
    files = len(list(Path(f"/proc/{app.pid}/fd").iterdir()))
    return f"{now / 1024:.0f}", f"{most / 1024:.0f}", threads, files


def row(*cells):
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def cold_start(log, films, times=3):
    """From `python app.py` to the page and to a first answer, beside an empty page of Gradio's."""
    empty = (
        "import gradio as g\nwith g.Blocks() as b: pass\nb.launch(prevent_thread_lock=True, ssr_mode=False)"
    )
    found = []
    for _ in range(times):
        start = perf_counter()
        subprocess.run([sys.executable, "-c", empty], check=True, stdout=log, stderr=log, cwd=ROOT)
        gradio = perf_counter() - start
        start = perf_counter()
        with running_app(log) as (_, port):
            page = perf_counter() - start
            firsts = visit(port, films[:1], 0.001)[0] + visit(port, films[:1], 0.001)[0]
            found.append((gradio, page, page + firsts[0], *firsts))
        code = "from time import perf_counter as t; a = t(); import {}; print(t() - a)"
    row("what", f"seconds, median of {times}")
    row("---", "---")
    labels = ["an empty page of Gradio's: import and launch", "`python app.py` to a page"]
    labels += ["to the first answer of all models", "the first answer alone", "the second"]
    for label, seconds in zip(labels, zip(*found, strict=True), strict=True):
        row(label, f"{median(seconds):.2f}")
    for module in ("numpy", "fracture_lib", "gradio"):
        command = [sys.executable, "-c", code.format(module)]
        seconds = [float(subprocess.check_output(command, cwd=ROOT)) for _ in range(2 * times)]
        row(f"`import {module}`", f"{median(seconds):.2f}")


def engine(films, seconds):
    """Films a second through the panel alone, two threads, no server: what a server can reach at most."""
    panel = Panel()
    panel.load_all()

    def work(_):
        count, end = 0, monotonic() + seconds
        while monotonic() < end:
            panel.ask(films[count % len(films)][1], name="x")
            count += 1
        return count

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(2) as pool:  # as in app.py
        return sum(pool.map(work, range(2))) / seconds


def load(app, port, films, crowds, seconds):
    best = engine(films, seconds / 2)
    row("visitors", "answers", "a second", "of the engine's", "p50 ms", "p95", "p99")
    row(*["---"] * 7)
    notes = []
    for visitors in crowds:
        cpu, start = cpu_seconds(app), perf_counter()
        times, outcomes = crowd(port, films, visitors, seconds)
        rate = outcomes["answered"] / (perf_counter() - start)
        cuts = [f"{1000 * quantiles(times, n=100, method='inclusive')[i]:.0f}" for i in (49, 94, 98)]
        row(visitors, outcomes["answered"], f"{rate:.1f}", f"{rate / best:.2f}", *cuts)
        cost = 1000 * (cpu_seconds(app) - cpu) / max(1, outcomes["answered"])
        others = {o: n for o, n in outcomes.items() if o != "answered"}
        notes.append((visitors, f"{cost:.0f}", others or "none", *status(app)))
    print(f"\nThe engine alone, two threads: {best:.1f} films a second.\n")
    row("visitors", "CPU ms an answer", "not answered", "MB", "MB at most", "threads", "open files")
    row(*["---"] * 7)
    for note in notes:
        row(*note)


def soak(app, port, films, minutes):
    """Mixed traffic, good and bad, from four visitors; a row each tenth of the time."""
    bad = [("note.txt", b"no film"), ("cut.jpg", draw_jpeg()[:900]), ("empty.png", b" ")]
    mixed = [*films[:4], bad[0], ("film.dcm", draw_dicom()), *films[4:8], *bad[1:]]
    row(
        "minute",
        "asked",
        "answered",
        "refused with a sentence",
        "other",
        "MB",
        "MB at most",
        "threads",
        "files",
    )
    row(*["---"] * 9)
    for tenth in range(1, 11):
        _, outcomes = crowd(port, mixed, 4, 6 * minutes)
        answered, refused = outcomes["answered"], outcomes["refused"]
        other = outcomes.total() - answered - refused
        row(f"{tenth * minutes / 10:g}", outcomes.total(), answered, refused, other, *status(app))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--visitors", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="this instead of the load")
    options = parser.parse_args()
    films = []
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log.txt").open("w") as log:
        for i in range(max(8, *options.visitors)):
            path = Path(folder) / f"film-{i}.jpg"
            draw_film(CLASSES[i % len(CLASSES)].label, seed=i, width=640, height=640).save(path, quality=90)
            films.append((path.name, path.read_bytes()))
        if options.soak is None:
            cold_start(log, films)
            print()
        with running_app(log) as (app, port):
            crowd(port, films, 2, 5)  # to warm up
            if options.soak is None:
                load(app, port, films, options.visitors, options.seconds)
            else:
                soak(app, port, films, options.soak)


if __name__ == "__main__":
    main()
