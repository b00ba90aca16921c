"""Load-test the page: `python -m benchmarks.serving` measures start-up, then 1, 8 and 32 visitors, or a soak.

Starts `python app.py` in a process of its own and calls /compare over plain HTTP, with a client as light as
possible, since it shares the cores. Each visitor uploads an image, waits for the response and sends the image
again. The CPU time per response depends least on other load. Linux only.
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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from time import monotonic, perf_counter, sleep
from typing import IO, TypeAlias

from threadpoolctl import threadpool_limits

from benchmarks.inference import make_dicom, make_jpeg
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.labels import CLASSES

File: TypeAlias = tuple[str, bytes]  # name and content
App: TypeAlias = "subprocess.Popen[bytes]"

ROOT = Path(__file__).parent.parent
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
EMPTY_PAGE = (
    "import gradio as g\nwith g.Blocks() as b: pass\nb.launch(prevent_thread_lock=True, ssr_mode=False)"
)
BROWSER_SECONDS = 2  # until a browser has shown the page and a visitor has chosen an image, at least
PREDICTION, BUSY, REJECTED = "prediction", "busy", "rejected"  # outcomes of a request


@contextmanager
def running_app(log: IO[str]) -> Iterator[tuple[App, int]]:
    """Yield the process and port of a page that responds."""
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
                    raise SystemExit(f"The page did not start; see {log.name}.") from None
                sleep(0.05)
        yield app, port
    finally:
        app.terminate()
        app.wait()


def request_predictions(connection: http.client.HTTPConnection, file: File) -> str:
    """Upload an image and call /compare; return one of the outcomes, or an unexpected response."""
    name, data = file
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + data + b"\r\n--x--\r\n"
    _, uploaded = _send(connection, "POST", "/upload", body, "multipart/form-data; boundary=x")
    [path] = json.loads(uploaded)
    inputs = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, 3, False]}
    status, answer = _send(connection, "POST", "/call/compare", json.dumps(inputs).encode())
    if status == 503:
        return BUSY
    event_id = json.loads(answer)["event_id"]
    events = _send(connection, "GET", f"/call/compare/{event_id}")[1].decode()
    if "event: complete" in events:
        return PREDICTION
    error = json.loads(events.strip().rpartition("data: ")[2])
    return REJECTED if error and error["error"] else events


def _send(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    content_type: str = "application/json",
) -> tuple[int, bytes]:
    connection.request(method, f"/gradio_api{path}", body, {"Content-Type": content_type} if body else {})
    response = connection.getresponse()
    return response.status, response.read()


def visit(port: int, files: Sequence[File], seconds: float) -> tuple[list[float], Counter[str]]:
    """Send `files` in turn, again and again; return the seconds of each response and the outcomes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    times: list[float] = []
    outcomes: Counter[str] = Counter()
    end = monotonic() + seconds
    while monotonic() < end:
        start = perf_counter()
        try:
            outcome = request_predictions(connection, files[len(times) % len(files)])
        except Exception as error:  # counts as an outcome, whatever it is
            outcome = repr(error)
            connection.close()
        outcomes[outcome] += 1
        times.append(perf_counter() - start)
    return times, outcomes


def visit_concurrently(
    port: int, files: Sequence[File], n_visitors: int, seconds: float
) -> tuple[list[float], Counter[str]]:
    """Let visitors visit at the same time, each starting with another file."""
    shifts = [i % len(files) for i in range(n_visitors)]
    rotated = [[*files[shift:], *files[:shift]] for shift in shifts]
    with ThreadPoolExecutor(n_visitors) as pool:
        visits = list(pool.map(lambda some: visit(port, some, seconds), rotated))
    return sorted(t for times, _ in visits for t in times), sum((o for _, o in visits), Counter())


def cpu_seconds(app: App) -> float:
    fields = Path(f"/proc/{app.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND  # utime and stime


def process_status(app: App) -> tuple[str, str, int, int]:
    """Return the memory and peak memory in MB, the threads and the open files of a process."""
    text = Path(f"/proc/{app.pid}/status").read_text()
    memory, peak, threads = (
        int(text.split(f"{key}:")[1].split()[0]) for key in ("VmRSS", "VmHWM", "Threads")
    )
    n_files = len(list(Path(f"/proc/{app.pid}/fd").iterdir()))
    return f"{memory / 1024:.0f}", f"{peak / 1024:.0f}", threads, n_files


def print_row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def print_head(*columns: str) -> None:
    print_row(*columns)
    print_row(*["---"] * len(columns))


def measure_cold_start(log: IO[str], files: Sequence[File], n_starts: int = 3) -> None:
    """Print the time until `python app.py` serves a page and a response, beside an empty Gradio page."""
    measured = []
    for _ in range(n_starts):
        start = perf_counter()
        subprocess.run([sys.executable, "-c", EMPTY_PAGE], check=True, stdout=log, stderr=log, cwd=ROOT)
        empty_page = perf_counter() - start
        start = perf_counter()
        with running_app(log) as (_, port):
            page = perf_counter() - start
            (at_once, *_), _ = visit(port, files[:1], 0.001)
        with running_app(log) as (_, port):
            sleep(BROWSER_SECONDS)
            (first, *_), _ = visit(port, files[:1], 0.001)
            (second, *_), _ = visit(port, files[:1], 0.001)
            measured.append((empty_page, page, page + at_once, first, second))
    print_head("start", f"seconds, median of {n_starts}")
    titles = (
        "an empty Gradio page: import and launch",
        "`python app.py` until the page responds",
        "until the first response of all models, requested at once",
        f"first response, requested {BROWSER_SECONDS} seconds after the page",
        "second response",
    )
    for title, times in zip(titles, zip(*measured, strict=True), strict=True):
        print_row(title, f"{median(times):.3f}")
    for module in ("numpy", "fracture_lib", "gradio"):
        code = f"from time import perf_counter as now; start = now(); import {module}; print(now() - start)"
        command = [sys.executable, "-c", code]
        seconds = [float(subprocess.check_output(command, cwd=ROOT)) for _ in range(2 * n_starts)]
        print_row(f"`import {module}`", f"{median(seconds):.2f}")


def pipeline_throughput(files: Sequence[File], seconds: float) -> float:
    """Return images per second through the pipeline, two at a time without a server: an upper bound."""
    pipeline = InferencePipeline()
    pipeline.warm_up()

    def work(_: int) -> int:
        n, end = 0, monotonic() + seconds
        while monotonic() < end:
            pipeline.predict(files[n % len(files)][1], visuals=False)  # as for /compare
            n += 1
        return n

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(2) as pool:  # as on the page
        return sum(pool.map(work, range(2))) / seconds


def measure_load(app: App, port: int, files: Sequence[File], visitors: Sequence[int], seconds: float) -> None:
    """Print throughput, latency and resources for growing numbers of visitors."""
    best = pipeline_throughput(files, seconds / 2)
    latency = ("p50 (ms)", "p95 (ms)", "p99 (ms)")
    share = "share of the pipeline's throughput"
    print_head("visitors", "responses", "responses per second", share, *latency)
    resources = []
    for n_visitors in visitors:
        cpu, start = cpu_seconds(app), perf_counter()
        times, outcomes = visit_concurrently(port, files, n_visitors, seconds)
        rate = outcomes[PREDICTION] / (perf_counter() - start)
        percentiles = quantiles(times, n=100, method="inclusive")
        cells = [f"{1000 * percentiles[i]:.0f}" for i in (49, 94, 98)]
        print_row(n_visitors, outcomes[PREDICTION], f"{rate:.1f}", f"{rate / best:.2f}", *cells)
        cost = 1000 * (cpu_seconds(app) - cpu) / max(1, outcomes[PREDICTION])
        others = {outcome: n for outcome, n in outcomes.items() if outcome != PREDICTION}
        resources.append((n_visitors, f"{cost:.0f}", others or "none", *process_status(app)))
    print(f"\nThe pipeline alone, two images at a time: {best:.1f} images per second.\n")
    memory = ("memory (MB)", "peak memory (MB)", "threads", "open files")
    print_head("visitors", "CPU time per response (ms)", "not answered", *memory)
    for row in resources:
        print_row(*row)


def measure_soak(app: App, port: int, files: Sequence[File], minutes: float) -> None:
    """Print a row per tenth of the time, in which four visitors send valid and invalid files."""
    text, truncated, blank = (
        ("note.txt", b"not an image"),
        ("truncated.jpg", make_jpeg()[:900]),
        ("empty.png", b" "),
    )
    mixed = [*files[:4], text, ("image.dcm", make_dicom()), *files[4:8], truncated, blank]
    memory = ("memory (MB)", "peak memory (MB)", "threads", "open files")
    print_head("minute", "requests", "predictions", "rejected with an error message", "other", *memory)
    for tenth in range(1, 11):
        _, outcomes = visit_concurrently(port, mixed, 4, 6 * minutes)
        predictions, rejected = outcomes[PREDICTION], outcomes[REJECTED]
        other = outcomes.total() - predictions - rejected
        minute = f"{tenth * minutes / 10:g}"
        print_row(minute, outcomes.total(), predictions, rejected, other, *process_status(app))


def make_files(n: int) -> list[File]:
    """Return JPEG files of synthetic radiographs of 640x640."""
    files = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            path = Path(folder) / f"image-{i}.jpg"
            label = CLASSES[i % len(CLASSES)].label
            synthetic_radiograph(label, seed=i, width=640, height=640).save(path, quality=90)
            files.append((path.name, path.read_bytes()))
    return files


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--visitors",
        type=int,
        nargs="+",
        default=[1, 8, 32],
        help="numbers of concurrent visitors, one row each",
    )
    parser.add_argument("--seconds", type=float, default=60, help="duration of a row")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="run the soak test instead")
    options = parser.parse_args()
    files = make_files(max(8, *options.visitors))
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log.txt").open("w") as log:
        if options.soak is None:
            measure_cold_start(log, files)
            print()
        with running_app(log) as (app, port):
            visit_concurrently(port, files, 2, 5)  # warm up
            if options.soak is None:
                measure_load(app, port, files, options.visitors, options.seconds)
            else:
                measure_soak(app, port, files, options.soak)


if __name__ == "__main__":
    main()
