"""The endpoints for programs: schema, results, errors, queue, and the examples of docs/api.md."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from time import sleep
from typing import Any, NamedTuple

import gradio as gr
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError, Status

import fracture_lib
from fracture_lib.errors import InvalidModel
from fracture_lib.inference.pipeline import InferencePipeline
from fracture_lib.registry import ALL_MODELS
from fracture_lib.webui.api import Api
from fracture_lib.webui.app import build_page
from tests.helpers.app_client import API, App

DOCS = (Path(__file__).parent.parent.parent / "docs" / "api.md").read_text(encoding="utf-8")
# endpoint -> (name, JSON type, whether it has a default) of its parameters
SCHEMA = {
    "/predict": [
        ("image", "object", False),
        ("model", "string", True),
        ("top_k", "integer", True),
        ("skip_ood_check", "boolean", True),
    ],
    "/compare": [("image", "object", False), ("top_k", "integer", True), ("skip_ood_check", "boolean", True)],
    "/predict_batch": [
        ("images", "array", False),
        ("top_k", "integer", True),
        ("skip_ood_check", "boolean", True),
    ],
    "/models": [],
}


@pytest.fixture(scope="module")
def client(app_url) -> Client:
    return Client(app_url, verbose=False)


def test_schema_lists_exactly_the_public_endpoints(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    found = {
        name: [
            (p["parameter_name"], p["type"].get("type", ""), p["parameter_has_default"])
            for p in endpoint["parameters"]
        ]
        for name, endpoint in endpoints.items()
    }
    assert found == SCHEMA
    model = next(p for p in endpoints["/predict"]["parameters"] if p["parameter_name"] == "model")
    assert model["type"]["enum"] == list(ALL_MODELS) and model["parameter_default"] == "ensemble"
    assert all(endpoint["description"] for endpoint in endpoints.values())


def test_predict_returns_the_librarys_prediction(client, image_path):
    result = client.predict(handle_file(image_path), model="resnet50", top_k=4, api_name="/predict")
    assert set(result) == {
        *("image", "status", "is_ood", "fracture", "warnings", "predictions", "failures", "summary")
    }
    assert result["fracture"]["outcome"] in ("visible", "uncertain", "none")
    assert result["fracture"]["message"] == fracture_lib.detect_fracture(image_path).message
    assert result["image"] == image_path.name and result["is_ood"] is False
    assert result["status"] == "answered"
    [prediction] = result["predictions"]
    expected = fracture_lib.load_model("resnet50").predict(image_path, top_k=4).scores
    assert [s["label"] for s in prediction["scores"]] == [s.label for s in expected]
    assert prediction["scores"][0]["probability"] == pytest.approx(expected[0].probability, abs=1e-5)


def test_compare_and_models_cover_all_models(client, image_path):
    result = client.predict(handle_file(image_path), api_name="/compare")
    assert [p["model"] for p in result["predictions"]] == list(ALL_MODELS)
    models = client.predict(api_name="/models")
    assert [m["model"] for m in models] == list(ALL_MODELS)
    for model in models:
        assert 0 < model["accuracy"]["low"] < model["accuracy"]["value"] < model["accuracy"]["high"] < 1
        assert model["size_bytes"] > 1e5 and model["n"] > 0 and len(model["classes"]) == 10


def test_predict_batch_with_bad_image_returns_results_and_errors_in_order(client, image_path, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    results = client.predict(
        [handle_file(path) for path in (image_path, bad, image_path)], api_name="/predict_batch"
    )
    names = [image_path.name, "bad.png", f"{image_path.name} (2)"]
    assert [result["image"] for result in results] == names
    assert set(results[1]) == {"image", "status", "error"} and results[1]["status"] == "unreadable"
    assert "Unsupported file" in results[1]["error"]
    assert len(results[2]["predictions"]) == len(ALL_MODELS)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (b"not an image", {}, "Unsupported file"),
        (None, {"top_k": 11}, "use a whole number from 1 to 10"),
        (None, {"skip_ood_check": "false"}, "use true or false"),
        (None, {"model": "b" * 9000}, r'^Unknown model "b+…b+"\. Choose from pytorch-cnn, .{,99}$'),
    ],
    ids=["bad image", "bad top_k", "bad flag", "bad model"],
)
def test_predict_with_invalid_input_raises_its_message(
    client, image_path, tmp_path, content, arguments, message
):
    path = image_path
    if content:
        path = tmp_path / "bad.png"
        path.write_bytes(content)
    with pytest.raises(AppError, match=message):
        client.predict(handle_file(path), api_name="/predict", **arguments)


# docs/api.md


def examples() -> list[tuple[str, str]]:
    """Return (language, code) of the examples that run."""
    return re.findall(r"```(python|sh)\n(.*?)```", DOCS, re.DOTALL)


@pytest.mark.parametrize("example", range(3), ids=["gradio_client", "curl", "MCP"])
def test_example_of_the_documentation_runs(app_url, image_path, tmp_path, example):
    assert len(examples()) == 3
    language, code = examples()[example]
    (tmp_path / "xray.png").write_bytes(image_path.read_bytes())
    command = [sys.executable, "-c"] if language == "python" else ["bash", "-euc"]
    code = code.replace("http://127.0.0.1:7860", app_url)
    done = subprocess.run([*command, code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    top = fracture_lib.load_model("resnet50").predict(image_path)
    assert top.label in done.stdout and f"{top.probability:.3f}"[:4] in done.stdout


def test_result_in_the_documentation_has_the_keys_of_a_real_one(image_path):
    [documented] = [json.loads(b) for b in re.findall(r"```json\n(.*?)```", DOCS, re.DOTALL) if "scores" in b]
    result = fracture_lib.compare(image_path, ["resnet50"]).to_dict(3)
    assert list(documented) == list(result)
    assert list(documented["predictions"][0]) == list(result["predictions"][0])


# A model that cannot be loaded


@pytest.fixture
def misconfigured(monkeypatch) -> Iterator[App]:
    """A page whose resnet50 has an invalid repository."""
    monkeypatch.setenv("FRACTURE_HUB_RESNET50", "no revision")
    page = build_page(InferencePipeline()).queue()
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    yield App(url)
    page.close()


def test_models_with_misconfigured_model_lists_the_others_and_its_error(misconfigured):
    event, [models] = misconfigured.call("models", [])
    assert event == "complete" and [model["model"] for model in models] == list(ALL_MODELS)
    loaded = [model["model"] for model in models if "accuracy" in model]
    assert loaded == ["pytorch-cnn", "tensorflow-cnn"]
    failed = {model["model"]: model["error"] for model in models if "error" in model}
    assert "FRACTURE_HUB_RESNET50" in failed["resnet50"] and "owner/name@revision" in failed["resnet50"]
    assert set(failed) == {"resnet50", "ensemble"}


def test_models_with_model_that_fails_to_load_lists_the_others_and_its_error():
    class FailingPipeline(InferencePipeline):
        def get_model(self, reference):
            if reference == "resnet50":
                raise InvalidModel("It is damaged.")
            return super().get_model(reference)

    with gr.Blocks():
        models = Api(FailingPipeline()).models()
    assert [model["model"] for model in models if "accuracy" in model] == ["pytorch-cnn", "tensorflow-cnn"]
    failed = {model["model"]: model["error"] for model in models if "error" in model}
    assert failed == {"resnet50": "It is damaged.", "ensemble": "It is damaged."}


# The queue


class BlockingPipeline(InferencePipeline):
    """A pipeline that stops at blocked.png until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.released = Event(), Event()

    def predict(self, source, *arguments, **options):
        if Path(source).name == "blocked.png":
            self.reached.set()
            assert self.released.wait(240)
        return super().predict(source, *arguments, **options)


class BusyPage(NamedTuple):
    """A page that classifies one image at a time and lets one request wait."""

    url: str
    pipeline: BlockingPipeline
    client: Client
    blocked: Any  # the image at which the pipeline stops


@pytest.fixture
def busy(image_path, tmp_path) -> Iterator[BusyPage]:
    path = tmp_path / "blocked.png"
    path.write_bytes(image_path.read_bytes())
    pipeline = BlockingPipeline()
    page = build_page(pipeline).queue(max_size=1, default_concurrency_limit=1)
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    try:
        yield BusyPage(url, pipeline, Client(url, verbose=False), handle_file(path))
    finally:
        pipeline.released.set()
        page.close()


def test_full_queue_rejects_the_next_request_at_once_and_completes_the_others(busy, image_path):
    first = busy.client.submit(busy.blocked, model="pytorch-cnn", api_name="/predict")
    assert busy.pipeline.reached.wait(240)
    second = busy.client.submit(handle_file(image_path), model="pytorch-cnn", api_name="/predict")
    while second.status().code is not Status.IN_QUEUE:
        sleep(0.05)
    with pytest.raises(QueueError, match="try again"):
        busy.client.predict(handle_file(image_path), model="pytorch-cnn", api_name="/predict")
    assert App(busy.url).request(f"{API}/call/models", b'{"data": []}').status == 503
    busy.pipeline.released.set()
    assert [job.result()["image"] for job in (first, second)] == ["blocked.png", image_path.name]


def test_single_image_does_not_wait_for_a_batch(busy, image_path):
    batch = busy.client.submit([busy.blocked], api_name="/predict_batch")
    assert busy.pipeline.reached.wait(240)
    result = busy.client.predict(handle_file(image_path), model="pytorch-cnn", api_name="/predict")
    assert result["predictions"]
    busy.pipeline.released.set()
    assert batch.result()[0]["image"] == "blocked.png"
