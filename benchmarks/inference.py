"""Compare this library with what a user would run instead: `python -m benchmarks.inference`.

"Ours" is the whole path of an image: decode a 640x640 JPEG, cut its views, run the model and compute the
class activation maps. The others get the views and return logits only.

All rows of a column take turns in one process, in a new order each round, so that other load slows them
alike; a pause between them lets spinning threads stop. A cell holds the ratios of the median and of the
minimum time to ours, and in brackets both times in ms. The minimum depends least on other load.
"""

import argparse
import io
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from statistics import median
from time import perf_counter, sleep
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.hub import BUNDLE
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.io.image import preprocess
from fracture_lib.models import onnx
from fracture_lib.models.model import read_model
from fracture_lib.registry import MODELS

Pixels: TypeAlias = NDArray[np.float32]
Contenders: TypeAlias = dict[str, Callable[[], Any]]  # by row title: a function that is timed
Times: TypeAlias = tuple[float, float]  # median and minimum, in seconds

OURS = "**ours, end to end**"
PAUSE = 0.02  # seconds


def make_jpeg() -> bytes:
    """Return a synthetic radiograph of 640x640 as a JPEG."""
    buffer = io.BytesIO()
    synthetic_radiograph("Spiral", width=640, height=640).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make_dicom() -> bytes:
    """Return a synthetic radiograph of 3000x2500 as an uncompressed 16-bit DICOM file with a window."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    values = np.asarray(synthetic_radiograph("Spiral", width=2500, height=3000), np.uint16) * 257
    dataset = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=bytes(128))
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.WindowCenter, dataset.WindowWidth = 30000, 60000
    dataset.PixelData = values.tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _view_batch(data: bytes) -> Pixels:
    """Return all views of one image as a batch [V, 1, 128, 128], which every network takes."""
    return preprocess(data)[:, None]


def ours(name: str, batch_size: int, data: bytes) -> Contenders:
    model = read_model(name)

    def predict() -> Any:
        return model.forward(np.stack([preprocess(data) for _ in range(batch_size)]))

    return {OURS: predict}


def onnx_runtime(name: str, pixels: Pixels, threads: int) -> Contenders:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(BUNDLE / name / "model.onnx", options)
    return {"ONNX Runtime": lambda: session.run(["logits"], {"pixel_values": pixels})}


def openvino(name: str, pixels: Pixels, threads: int) -> Contenders:
    from openvino import Core

    contenders: Contenders = {}
    for precision in ("f32", "bf16"):
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
        }
        request = Core().compile_model(BUNDLE / name / "model.onnx", "CPU", settings).create_infer_request()
        contenders[f"OpenVINO, {precision}"] = partial(request.infer, {"pixel_values": pixels})
    return contenders


def pytorch(name: str, pixels: Pixels, threads: int) -> Contenders:
    import torch

    from fracture_lib.models.config import read_config
    from fracture_lib.models.pytorch import build

    torch.set_num_threads(threads)
    architecture = read_config(BUNDLE / name).architecture
    eager = build(architecture).eval()
    channels_last = build(architecture).eval().to(memory_format=torch.channels_last)
    inputs = torch.from_numpy(pixels)
    inputs_channels_last = inputs.contiguous(memory_format=torch.channels_last)

    def inference_mode() -> None:
        with torch.inference_mode():
            channels_last(inputs_channels_last)

    return {
        "PyTorch, eager": lambda: eager(inputs),
        "PyTorch, inference mode, channels last": inference_mode,
    }


def keras(name: str, pixels: Pixels, threads: int) -> Contenders:
    """Return three ways of Keras on TensorFlow, whose threads the environment sets."""
    import keras
    import tensorflow

    model = keras.saving.load_model(BUNDLE / name / "model.keras", compile=False)
    inputs = pixels.reshape(-1, 128, 128, 1)
    tensor = tensorflow.constant(inputs)
    function = tensorflow.function(model)
    return {
        "Keras, `predict`": lambda: model.predict(inputs, verbose=0),
        "Keras, `model(x)`": lambda: model(tensor),
        "Keras, `tf.function`": lambda: function(tensor),
    }


def measure(contenders: Contenders, n_rounds: int, n_warm_up: int) -> dict[str, Times]:
    """Time the contenders in interleaved rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for i in range(n_warm_up + n_rounds):
        Random(i).shuffle(order)
        for name in order:
            sleep(PAUSE)
            start = perf_counter()
            contenders[name]()
            if i >= n_warm_up:
                seconds[name].append(perf_counter() - start)
    return {name: (median(times), min(times)) for name, times in seconds.items()}


def format_cell(times: Times, reference: Times) -> str:
    ratios = " / ".join(f"{time / other:.2f}" for time, other in zip(times, reference, strict=True))
    return f"{ratios} ({' / '.join(f'{1000 * time:.1f}' for time in times)})"


def compare_models(threads: int, n_rounds: int, batch_sizes: Sequence[int]) -> None:
    """Print the table for one number of threads, with which this process was started."""
    onnx.THREADS = threads
    data = make_jpeg()
    columns: dict[tuple[str, int], dict[str, Times]] = {}
    for name, spec in MODELS.items():
        framework = {"pytorch": pytorch, "keras": keras}[spec.framework]
        for batch_size in batch_sizes:
            pixels = np.tile(_view_batch(data), (batch_size, 1, 1, 1))
            contenders = ours(name, batch_size, data)
            for build in (onnx_runtime, openvino, framework):
                contenders |= build(name, pixels, threads)
            rounds = n_rounds if batch_size == 1 else max(3, n_rounds // 8)
            columns[name, batch_size] = measure(contenders, rounds, 1)
    print(f"\n{threads} thread{'s' * (threads > 1)}: ratio to ours (ms)\n", flush=True)
    print_columns(columns)


def print_columns(columns: Mapping[tuple[str, int], Mapping[str, Times]]) -> None:
    print("| | " + " | ".join(f"`{name}`, {batch_size}" for name, batch_size in columns) + " |")
    print("| --- " * (len(columns) + 1) + "|")
    for row in dict.fromkeys(name for times in columns.values() for name in times):
        cells = [format_cell(times[row], times[OURS]) if row in times else "" for times in columns.values()]
        print(f"| {row} | " + " | ".join(cells) + " |", flush=True)


def compare_steps(threads: int, n_rounds: int) -> None:
    """Print what the steps other than inference cost, beside the bare inference of the three models."""
    jpeg, dicom = make_jpeg(), make_dicom()
    pipeline, fast_pipeline = InferencePipeline(), InferencePipeline(fast=True)
    pipeline.warm_up()
    fast_pipeline.warm_up()
    pixels = _view_batch(jpeg)
    bare = [onnx_runtime(name, pixels, threads)["ONNX Runtime"] for name in MODELS]

    def infer_all() -> None:
        for infer in bare:
            infer()

    reference = "bare inference of the three models in ONNX Runtime"
    pipeline_row = (
        "`InferencePipeline.predict`: preprocessing, OOD check, three models, ensemble, class activation maps"
    )
    rows: Contenders = {
        reference: infer_all,
        pipeline_row: lambda: pipeline.predict(jpeg),
        "the same with `fast=True`, from one view of the image": lambda: fast_pipeline.predict(jpeg),
        "read and preprocess a 640x640 JPEG": lambda: preprocess(jpeg),
        "read and preprocess a 3000x2500 16-bit DICOM file": lambda: preprocess(dicom),
    }
    times = measure(rows, n_rounds, 3)
    print("\n| | ratio to the first row (ms) |\n| --- | --- |")
    for row, seconds in times.items():
        print(f"| {row} | {format_cell(seconds, times[reference])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--rounds", type=int, default=40, help="rounds with one image; larger batches get an eighth"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="one table for each number")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32], help="one column for each")
    options = parser.parse_args()
    if len(options.threads) == 1:
        compare_models(options.threads[0], options.rounds, options.batch_sizes)
        compare_steps(options.threads[0], options.rounds)
        return
    for threads in options.threads:  # TensorFlow accepts one number of threads per process
        command = [sys.executable, "-m", "benchmarks.inference", "--threads", str(threads)]
        command += ["--rounds", str(options.rounds), "--batch-sizes", *map(str, options.batch_sizes)]
        settings = {
            "TF_NUM_INTRAOP_THREADS": str(threads),
            "TF_NUM_INTEROP_THREADS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "OPENBLAS_NUM_THREADS": "1",  # as the page
        }
        subprocess.run(command, check=True, env=os.environ | settings)


if __name__ == "__main__":
    main()
