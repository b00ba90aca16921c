"""Measure `fracture predict --out`, its throughput beside the bare engine's: `python -m benchmarks.bulk`.

The rows of the first table take turns in one process, in a new order each round, so that other load slows
them alike. "Ours" is the whole path: list a folder, read and decode JPEGs, classify, write Parquet. The bare
engine is ONNX Runtime on inputs that are ready in memory, on as many threads as there are cores, one image
each or eight. The CPU time per image depends least on other load. Linux only.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter, process_time, sleep
from typing import TypeAlias

import numpy as np

import fracture_lib
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.hub import BUNDLE
from fracture_lib.inference.bulk import classify_shards, load_pipeline
from fracture_lib.inference.shards import Settings, open_shards
from fracture_lib.io.image import load_image, trim
from fracture_lib.io.views import make_detector_input, make_views
from fracture_lib.labels import CLASSES
from fracture_lib.models.onnx import INPUT, open_session
from fracture_lib.registry import ALL_MODELS, DETECTOR, MODELS

Contenders: TypeAlias = dict[
    str, Callable[[], object]
]  # by row title: a function that classifies N_ROUND images

N_DISTINCT = 100  # drawings, of which larger folders hold copies
N_ROUND = 96  # images that are timed at once
N_RAY = 300  # images that a cluster classifies
N_CORES = len(os.sched_getaffinity(0))


def make_folder(folder: Path, n: int, width: int, height: int) -> Path:
    """Write `n` synthetic radiographs as JPEG files."""
    folder.mkdir()
    for i in range(n):
        path = folder / f"{i:06}.jpg"
        if i < N_DISTINCT:
            label = CLASSES[i % len(CLASSES)].label
            synthetic_radiograph(label, i, width, height).save(path, quality=90)
        else:
            shutil.copy(folder / f"{i % N_DISTINCT:06}.jpg", path)
    return folder


def bare_engine(image: Path, batch_size: int) -> Callable[[], object]:
    """Return a function that runs the four networks on N_ROUND images that are ready in memory."""
    sessions = {name: open_session(BUNDLE / name / "model.onnx", 1) for name in (*MODELS, DETECTOR)}
    pixels = trim(load_image(image)).pixels
    views = np.tile(make_views(pixels)[:, None], (batch_size, 1, 1, 1))
    letterbox = np.tile(make_detector_input(pixels)[None], (batch_size, 1, 1, 1))

    def run(_: int) -> None:
        for name, session in sessions.items():
            session.run(["logits"], {INPUT: letterbox if name == DETECTOR else views})

    return lambda: in_threads(run, N_ROUND // batch_size)


def in_threads(function: Callable[[int], object], n: int) -> None:
    with ThreadPoolExecutor(N_CORES) as pool:
        list(pool.map(function, range(n)))


def compare(folder: Path, n_rounds: int) -> None:
    """Print the throughput of the bare engine, the pipeline and the whole command on one folder."""
    pipeline, models = load_pipeline(ALL_MODELS, "onnx", fast=False)
    settings = Settings(str(folder), models, "onnx", False, False, 32, fracture_lib.__version__)
    contents = [path.read_bytes() for path in sorted(folder.iterdir())]

    def ours() -> None:
        with tempfile.TemporaryDirectory() as out:
            shards = open_shards(Path(out), settings)
            list(classify_shards(shards, shards.pending(), pipeline, ALL_MODELS))

    contenders: Contenders = {
        f"ONNX Runtime on ready inputs, batches of {size}": bare_engine(next(folder.iterdir()), size)
        for size in (1, 8)
    }
    contenders["`InferencePipeline.predict` on files in memory"] = lambda: in_threads(
        lambda i: pipeline.predict(contents[i], visuals=False), N_ROUND
    )
    contenders["**`fracture predict --out`**"] = ours
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for i in range(n_rounds + 1):
        Random(i).shuffle(order)
        for name in order:
            start = perf_counter(), process_time()
            contenders[name]()
            if i:  # the first round warms up
                wall[name].append(perf_counter() - start[0])
                cpu[name].append(process_time() - start[1])
    best_wall, best_cpu = (min(min(times[n]) for n in order if "ready" in n) for times in (wall, cpu))
    median_wall = min(median(wall[n]) for n in order if "ready" in n)
    print("\n| | images per second, median / best | share of the bare engine's ", end="")
    print("| CPU time per image (ms) | share by CPU time |")
    print("| --- | --- | --- | --- | --- |")
    for name in contenders:
        rates = [N_ROUND / median(wall[name]), N_ROUND / min(wall[name])]
        shares = [median_wall / median(wall[name]), best_wall / min(wall[name])]
        print_row(
            name,
            " / ".join(f"{rate:.1f}" for rate in rates),
            " / ".join(f"{share:.2f}" for share in shares),
            f"{1000 * min(cpu[name]) / N_ROUND:.1f}",
            f"{best_cpu / min(cpu[name]):.2f}",
        )


def run_command(folder: Path, n: int) -> None:
    """Print the time and the peak memory of `fracture predict --out` on a folder."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "fracture_lib", "predict", str(folder), "--out", f"{out}/results"]
        start = perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        peak = "0"
        while process.poll() is None:  # the peak that `wait4` returns may be that of this process
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = status.partition("VmHWM:")[2].split()[0] if "VmHWM:" in status else peak
            sleep(0.2)
        seconds = perf_counter() - start
    print_row(f"{n} images", f"{seconds:.0f}", f"{n / seconds:.1f}", f"{int(peak) / 1024:.0f}")


@contextmanager
def ray_cluster(n_nodes: int) -> Iterator[str]:
    """Yield the address of a cluster of nodes with one core each, all on this machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(n_nodes - 1):
        cluster.add_node(num_cpus=1)
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def run_ray(folder: Path, n_nodes: int) -> None:
    """Print the time until each node has finished a shard, and the cluster's throughput from then on."""
    from fracture_lib.inference.bulk_ray import classify_shards_with_ray

    _, models = load_pipeline(ALL_MODELS, "onnx", fast=False)
    settings = Settings(str(folder), models, "onnx", False, False, 25, fracture_lib.__version__)
    with ray_cluster(n_nodes) as address, tempfile.TemporaryDirectory() as out:
        shards = open_shards(Path(out) / "results", settings)
        start = perf_counter()
        times = [
            (perf_counter(), n_done)
            for n_done in classify_shards_with_ray(shards, shards.pending(), ALL_MODELS, address)
        ]
        first = n_nodes - 1  # all nodes work on their first shard until then
        n_rest = sum(n_done for _, n_done in times[n_nodes:])
        rate = n_rest / (times[-1][0] - times[first][0])
        print_row(n_nodes, f"{times[first][0] - start:.0f}", f"{rate:.1f}")


def print_row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=8, help="rounds of the comparison")
    parser.add_argument("--images", type=int, nargs="*", default=[1000, 10_000], help="sizes of whole runs")
    parser.add_argument("--ray-nodes", type=int, nargs="*", default=[1, 2], help="sizes of clusters")
    parser.add_argument("--size", type=int, nargs=2, default=[640, 640], help="width and height of an image")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.rounds:
            compare(make_folder(Path(scratch) / "round", N_ROUND, *options.size), options.rounds)
        if options.images:
            print("\n| | seconds | images per second | peak memory (MB) |")
            print("| --- | --- | --- | --- |")
        for n in options.images:
            run_command(make_folder(Path(scratch) / f"{n}", n, *options.size), n)
        if options.ray_nodes:
            print("\n| nodes of one core | seconds to a shard per node | images per second from then on |")
            print("| --- | --- | --- |")
            folder = make_folder(Path(scratch) / "ray", N_RAY, *options.size)
        for n_nodes in options.ray_nodes:
            run_ray(folder, n_nodes)


if __name__ == "__main__":
    main()
