"""Classify the images of many shards on a cluster, with Ray Data.

An actor per core holds the models and writes whole shards, so a shard that is done twice, as when a node is
lost, is the same file. Ray Data keeps the actors busy, restarts lost ones and repeats what they left undone.
"""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before the import: nothing leaves the machine

import ray
import ray.data

from fracture_lib.errors import FractureError, InvalidData, ModelUnavailable
from fracture_lib.hub import Reference, first_line
from fracture_lib.inference.bulk import classify_shards, load_pipeline
from fracture_lib.inference.shards import Shards

__all__ = ["classify_shards_with_ray"]

THREADS = 2  # of an actor: one reads and decodes while the other runs a network
RETRIES = 3  # of a shard that fails, as when a connection is lost
TIMEOUT = 10  # seconds to connect to the cluster


class ShardActor:
    """Holds the models and classifies shards."""

    def __init__(self, shards: Shards, references: Sequence[Reference]) -> None:
        """Load the models. Raises ModelUnavailable if they are not those of the shards."""
        settings = shards.settings
        self._shards, self._references = shards, references
        self._pipeline, models = load_pipeline(references, settings.runtime, settings.fast)
        if models != settings.models:
            raise ModelUnavailable(
                f"A node has other models ({models}). Install the same version and weights on all nodes."
            )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Classify the shards whose numbers are in the column `item`; return their numbers of images."""
        numbers = [int(number) for number in batch["item"] if not self._shards.is_written(int(number))]
        for _ in classify_shards(self._shards, numbers, self._pipeline, self._references, THREADS):
            pass
        return {"n_images": [self._shards.n_rows(int(number)) for number in batch["item"]]}


def classify_shards_with_ray(
    shards: Shards, numbers: Sequence[int], references: Sequence[Reference], address: str | None
) -> Iterator[int]:
    """Classify the images of some shards and write these; yield the number of images of each that is done.

    `address` is that of a cluster whose nodes all see the source and the folder of the shards under the same
    path; None uses the cluster that the environment names, or else this machine. Raises InvalidData if the
    cluster cannot be reached or a shard fails again and again.
    """
    if not numbers:
        return
    address = address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            _check_port(address)
        ray.init(address, logging_level=logging.WARNING, log_to_driver=False)
    except Exception as error:  # each part of Ray raises its own types
        raise InvalidData(
            f"Cannot reach the Ray cluster at {address} ({first_line(error)}). Check --address."
        ) from error
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.retried_map_errors, context.max_map_retries = True, RETRIES
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        n_cores = int(ray.cluster_resources().get("CPU", 1))
        rows = ray.data.from_items(list(numbers), override_num_blocks=len(numbers)).map_batches(
            ShardActor,
            fn_constructor_args=(shards, references),
            batch_size=1,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=1, max_size=len(numbers), initial_size=min(n_cores, len(numbers))
            ),
        )
        for row in rows.iter_rows():
            yield row["n_images"]
    except FractureError:
        raise
    except Exception as error:
        raise InvalidData(
            f"The cluster failed ({first_line(error)}). Run the same command again to resume."
        ) from error
    finally:
        ray.shutdown()


def _check_port(address: str) -> None:
    """Raise an error if nothing listens at HOST:PORT, where Ray would wait for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():  # not such as "auto"
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT).close()
