"""Classify the images of many shards on this machine, as many at once as it has cores.

One thread reads and decodes while others run a network: both release the interpreter.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from fracture_lib.errors import InvalidImage
from fracture_lib.hub import Reference, Runtime
from fracture_lib.inference.batch import BatchRow
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.inference.shards import Shards, to_record
from fracture_lib.inference.sources import SourceImage, read_image
from fracture_lib.models import onnx

__all__ = ["classify_shards", "load_pipeline"]

AHEAD = 4  # images per thread that may be done before the first of them, which may be a large one

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def load_pipeline(
    references: Iterable[Reference], runtime: Runtime, fast: bool
) -> tuple[InferencePipeline, dict[str, str]]:
    """Return a pipeline for many threads, and the names of its models with the sources of their weights.

    Sets, for this process, one thread per run and per matrix product: images on a core each need not wait for
    one another. Raises FractureError if a model fails to load.
    """
    onnx.THREADS = 1
    threadpool_limits(1, user_api="blas")
    pipeline = InferencePipeline(runtime, fast)
    return pipeline, {model.name: str(model.source) for model in map(pipeline.get_model, references)}


def classify_shards(
    shards: Shards,
    numbers: Iterable[int],
    pipeline: InferencePipeline,
    references: Sequence[Reference],
    n_threads: int | None = None,
) -> Iterator[int]:
    """Classify the images of some shards and write these; yield 1 after each image.

    `n_threads` images are in work at a time, by default one per core. Raises InvalidData if an image cannot
    be read now but perhaps later.
    """

    def classify(task: tuple[int, SourceImage]) -> tuple[int, dict[str, Any]]:
        number, image = task
        try:
            result = pipeline.predict(
                read_image(image), references, image.name, shards.settings.skip_ood_check, visuals=False
            )
            row = BatchRow(image.name, result)
        except InvalidImage as error:
            row = BatchRow(image.name, None, str(error))
        return number, to_record(row)

    tasks = ((number, image) for number in numbers for image in shards.images(number))
    n_threads = n_threads or _n_cores()
    with ThreadPoolExecutor(n_threads) as pool:
        # One stream over all shards, so that no core idles at the end of one
        results = _map_ahead(pool, classify, tasks, AHEAD * n_threads)
        for number, group in groupby(results, key=itemgetter(0)):
            records = []
            for _, record in group:
                records.append(record)
                yield 1
            shards.write(number, records)


def _n_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[_In], _Out], items: Iterable[_In], n_ahead: int
) -> Iterator[_Out]:
    """Yield results in order, as `pool.map` does, but take at most `n_ahead` items before they are needed."""
    pending: deque[Future[_Out]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= n_ahead:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
