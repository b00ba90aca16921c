"""Our path beside what a user would pick instead: `python -m benchmarks.inference`, a table a thread count.

Ours is a film's whole way: decode a 640x640 JPEG, preprocess, infer, map, top k. The others get the model's
input ready made and give logits alone: they are bare inference. All of a column take turns in one process,
each round in another order, so that a busy machine slows them alike, with a pause between, in which an
engine's threads stop spinning. A cell holds two ratios, of the median and of the least time, which other work
on the machine changes less; in brackets the milliseconds of both.
"""

import argparse
import io
import os
import subprocess
import sys
from functools import partial
from random import Random
from statistics import median
from time import perf_counter, sleep

import numpy as np

import fracture_lib
from fracture_lib.backends import onnx
from fracture_lib.drawing import draw_film
from fracture_lib.hub import BUNDLE
from fracture_lib.panel import Panel
from fracture_lib.registry import MODELS

OURS = "**ours, the whole path**"
PAUSE = 0.02  # seconds


def draw_jpeg():
    """The bytes of a drawn film of 640x640, a JPEG."""
    file = io.BytesIO()
    draw_film("Spiral", width=640, height=640).save(file, "JPEG", quality=90)
    return file.getvalue()


def draw_dicom():
    """The bytes of a DICOM file of 3000x2500 pixels of 16 bits, uncompressed, with a window."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    tones = np.asarray(draw_film("Spiral", width=2500, height=3000), np.uint16) * 257
    dataset = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=bytes(128))
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = tones.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.WindowCenter, dataset.WindowWidth = 30000, 60000
    dataset.PixelData = tones.tobytes()
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def ours(name, batch, data):
    """A film through `predict`, or `batch` of them read and then asked about at once."""
    classifier = fracture_lib.load(name)
    if batch == 1:
        return {OURS: lambda: classifier.predict(data)}
    return {
        OURS: lambda: classifier.answer(
            np.stack([fracture_lib.preprocess(data) for _ in range(batch)])[:, None]
        )
    }


def onnx_runtime(name, pixels, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(BUNDLE / name / "model.onnx", options)
    return {"ONNX Runtime": lambda: session.run(["logits"], {"pixel_values": pixels})}


def openvino(name, pixels, threads):
    from openvino import Core

    found = {}
    for precision in ("f32", "bf16"):
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
        }
        request = Core().compile_model(BUNDLE / name / "model.onnx", "CPU", settings).create_infer_request()
        found[f"OpenVINO, {precision}"] = partial(request.infer, {"pixel_values": pixels})
    return found


def torch(name, pixels, threads):
    import torch

    from fracture_lib.backends.pytorch import build
    from fracture_lib.config import read_config

    torch.set_num_threads(threads)
    architecture = read_config(BUNDLE / name)["architecture"]
    eager, last = build(architecture).eval(), build(architecture).eval().to(memory_format=torch.channels_last)
    inputs = torch.from_numpy(pixels)
    inputs_last = inputs.contiguous(memory_format=torch.channels_last)

    def inference_mode():
        with torch.inference_mode():
            last(inputs_last)

    return {"torch, eager": lambda: eager(inputs), "torch, inference mode, channels last": inference_mode}


def keras(name, pixels, threads):
    import keras
    import tensorflow

    model = keras.saving.load_model(BUNDLE / name / "model.keras", compile=False)
    inputs = pixels.reshape(-1, 128, 128, 1)
    tensor = tensorflow.constant(inputs)
    function = tensorflow.function(model)
    return {
        "Keras, predict": lambda: model.predict(inputs, verbose=0),
        "Keras, model(x)": lambda: model(tensor),
        "Keras, tf.function": lambda: function(tensor),
    }


def measure(contenders, rounds, warm_up):
    """{name: function} -> {name: (median, least) seconds} over interleaved rounds."""
    seconds = {name: [] for name in contenders}
    order = list(contenders)
    for turn in range(warm_up + rounds):
        Random(turn).shuffle(order)
        for name in order:
            sleep(PAUSE)
            start = perf_counter()
            contenders[name]()
            if turn >= warm_up:
                seconds[name].append(perf_counter() - start)
    return {name: (median(times), min(times)) for name, times in seconds.items()}


def cell(times, base):
    """Two ratios of times to those of `base`, and their milliseconds."""
    ratios = " / ".join(f"{time / other:.2f}" for time, other in zip(times, base, strict=True))
    return f"{ratios} ({' / '.join(f'{1000 * time:.1f}' for time in times)})"


def compare(threads, rounds, batches):
    """Print the table of one thread count; this process was started with it."""
    onnx.THREADS = threads
    data = draw_jpeg()
    columns = {}
    for name, spec in MODELS.items():
        framework = {"pytorch": torch, "keras": keras}[spec.backend]
        for batch in batches:
            pixels = np.repeat(fracture_lib.preprocess(data)[None, None], batch, axis=0)
            contenders = ours(name, batch, data)
            for build in (onnx_runtime, openvino, framework):
                contenders |= build(name, pixels, threads)
            columns[name, batch] = measure(contenders, rounds if batch == 1 else max(3, rounds // 8), 1)
    print(f"\n{threads} thread{'s' * (threads > 1)}: times ours (ms)\n", flush=True)
    print("| | " + " | ".join(f"`{name}`, {batch}" for name, batch in columns) + " |")
    print("| --- " * (len(columns) + 1) + "|")
    for contender in dict.fromkeys(c for times in columns.values() for c in times):
        cells = [
            cell(times[contender], times[OURS]) if contender in times else "" for times in columns.values()
        ]
        print(f"| {contender} | " + " | ".join(cells) + " |", flush=True)


def parts(threads, rounds):
    """Print what is not inference, and the three models with maps beside their bare inference."""
    jpeg, dicom = draw_jpeg(), draw_dicom()
    panel = Panel()
    panel.load_all()
    pixels = fracture_lib.preprocess(jpeg)[None, None]
    bare = {}
    for name in MODELS:
        bare[name] = onnx_runtime(name, pixels, threads)["ONNX Runtime"]

    def infer_all():
        for infer in bare.values():
            infer()

    bare_row = "the three models' bare inference by ONNX Runtime"
    rows = {
        bare_row: infer_all,
        "the panel: one film read, judged, three models, ensemble, maps": lambda: panel.ask(jpeg, name="x"),
        "read and preprocess a 640x640 JPEG": lambda: fracture_lib.preprocess(jpeg),
        "read and preprocess a 3000x2500 16-bit DICOM": lambda: fracture_lib.preprocess(dicom),
    }
    times = measure(rows, rounds, 3)
    print("\n| | times the first (ms) |\n| --- | --- |")
    for row, seconds in times.items():
        print(f"| {row} | {cell(seconds, times[bare_row])} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40, help="at batch 1; an eighth of it at others")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    options = parser.parse_args()
    if len(options.threads) > 1:  # TensorFlow takes a number of threads once a process
        for threads in options.threads:
            again = [sys.executable, "-m", "benchmarks.inference", "--threads", str(threads)]
            again += ["--rounds", str(options.rounds), "--batches", *map(str, options.batches)]
            settings = {
                "TF_NUM_INTRAOP_THREADS": str(threads),
                "TF_NUM_INTEROP_THREADS": "1",
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "OPENBLAS_NUM_THREADS": "1",  # as in app.py
            }
            subprocess.run(again, check=True, env=os.environ | settings)
        return
    compare(options.threads[0], options.rounds, options.batches)
    parts(options.threads[0], options.rounds)


if __name__ == "__main__":
    main()
