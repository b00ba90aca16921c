"""The engine for clusters, on a real one: several nodes, each a set of processes on this machine."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import fracture_lib
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.errors import InvalidData
from fracture_lib.inference.shards import Settings, open_shards

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="Ray's test cluster needs Linux")

MODEL = "pytorch-cnn"


@pytest.fixture
def cluster(monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def shards(tmp_path):
    """Shards of 60 images, of which one is unreadable."""
    (tmp_path / "scans").mkdir()
    for i in range(59):
        synthetic_radiograph("Spiral", i, width=64, height=96).save(tmp_path / "scans" / f"{i:02}.png")
    (tmp_path / "scans" / "59.png").write_bytes(b"text")
    models = {MODEL: "bundled weights"}
    version = fracture_lib.__version__
    settings = Settings(str(tmp_path / "scans"), models, "onnx", True, False, 3, version)
    return open_shards(tmp_path / "results", settings)


def names(shards):
    paths = sorted(shards.folder.glob("part-*.parquet"))
    return [name for path in paths for name in pq.read_table(path)["image"].to_pylist()]


def actors(node):
    """Return the process ids of the actors on a node."""
    [raylet] = node.all_processes["raylet"]
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet.process.pid and b"ShardActor" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_ray_after_a_killed_worker_and_a_lost_node_has_every_image_once(cluster, shards):
    from fracture_lib.inference.bulk_ray import classify_shards_with_ray

    counts = []
    for n in classify_shards_with_ray(shards, shards.pending(), [MODEL], cluster.address):
        counts.append(n)
        if len(counts) == 1:
            driver = ray.get_runtime_context().get_node_id()
            lost, other = sorted(cluster.worker_nodes, key=lambda node: node.node_id == driver)
            [actor] = actors(other)
            os.kill(actor, signal.SIGKILL)
        if len(counts) == 3:
            assert actors(lost)
            assert len(shards.pending()) > 5
            cluster.remove_node(lost, allow_graceful=False)
    assert sum(counts) == 60 and not shards.pending()
    assert names(shards) == [f"{i:02}.png" for i in range(60)]
    assert shards.outcomes() == ({"answered": 59, "unreadable": 1}, 1)


@pytest.mark.slow
def test_ray_resumes_what_another_engine_began(cluster, shards):
    from fracture_lib.inference.bulk import classify_shards, load_pipeline
    from fracture_lib.inference.bulk_ray import classify_shards_with_ray

    pipeline, _ = load_pipeline([MODEL], "onnx", True)
    assert sum(classify_shards(shards, range(10), pipeline, [MODEL])) == 30
    before = {path: path.stat().st_mtime_ns for path in shards.folder.glob("part-*")}
    assert sum(classify_shards_with_ray(shards, shards.pending(), [MODEL], cluster.address)) == 30
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert names(shards) == [f"{i:02}.png" for i in range(60)]


@pytest.mark.slow
@pytest.mark.parametrize("address", ["no address", "127.0.0.1:1", "ray://127.0.0.1:1"])
def test_ray_without_a_cluster_at_the_address_raises_invalid_data(shards, address):
    from fracture_lib.inference.bulk_ray import classify_shards_with_ray

    with pytest.raises(InvalidData, match="Check --address"):
        list(classify_shards_with_ray(shards, [0], [MODEL], address))
