"""`fracture predict SOURCE --out DIR`: classify many images, on this machine or on a cluster."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

import fracture_lib
from fracture_lib.cli.options import SHARD_SIZE
from fracture_lib.hub import Reference
from fracture_lib.inference.batch import count_left_out, tally
from fracture_lib.inference.bulk import classify_shards, load_pipeline
from fracture_lib.inference.shards import Settings, open_shards

__all__ = ["predict_shards"]


def predict_shards(options: argparse.Namespace, references: tuple[Reference, ...]) -> int:
    """Write the shards of `options.images[0]` to the folder `options.out`, and return the exit code."""
    [source] = options.images
    if Path(source).exists():
        source = str(Path(source).absolute())  # the same for "scans/" and "./scans"
    pipeline, models = load_pipeline(references, options.runtime, options.fast)
    settings = Settings(
        source,
        models,
        options.runtime,
        options.fast,
        options.skip_ood_check,
        options.shard_size or SHARD_SIZE,
        fracture_lib.__version__,
    )
    shards = open_shards(Path(options.out).absolute(), settings)
    numbers = shards.pending()
    if options.engine == "ray":
        from fracture_lib.inference.bulk_ray import classify_shards_with_ray

        done = classify_shards_with_ray(shards, numbers, references, options.address)
    else:
        done = classify_shards(shards, numbers, pipeline, references)
    n_before = shards.n_images - sum(map(shards.n_rows, numbers))
    with tqdm(total=shards.n_images, initial=n_before, desc="classifying", unit="image") as progress:
        for n in done:
            progress.update(n)
    shards.remove_scratch()
    counts, n_errors = shards.outcomes()
    left_out = [count_left_out(shards.n_left_out, source)] if shards.n_left_out else []
    print(" ".join([tally(counts.elements()), *left_out]), file=sys.stderr)
    return 1 if n_errors else 0
