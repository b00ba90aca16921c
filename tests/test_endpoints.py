"""The page for programs: gradio_client, MCP and the README's own examples against a running app."""

import asyncio
import base64
import re
import subprocess
import sys
from pathlib import Path
from threading import Event
from time import sleep

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from gradio_client.utils import QueueError, Status

import fracture_lib
from app import build_page
from fracture_lib.panel import EVERYONE, Panel

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
# endpoint -> its parameters: name, JSON type, has it a default
SCHEMA = {
    "/predict": [
        ("film", "object", False),
        ("model", "string", True),
        ("top_k", "integer", True),
        ("anyway", "boolean", True),
    ],
    "/compare": [("film", "object", False), ("top_k", "integer", True), ("anyway", "boolean", True)],
    "/predict_batch": [("films", "array", False), ("top_k", "integer", True), ("anyway", "boolean", True)],
    "/models": [],
}


@pytest.fixture(scope="module")
def client(address):
    return Client(address, verbose=False)


def test_the_schema_is_this_and_nothing_else_is_public(client):
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    found = {
        name: [
            (p["parameter_name"], p["type"].get("type", ""), p["parameter_has_default"])
            for p in endpoint["parameters"]
        ]
        for name, endpoint in endpoints.items()
    }
    assert found == SCHEMA
    models = next(p for p in endpoints["/predict"]["parameters"] if p["parameter_name"] == "model")
    assert models["type"]["enum"] == list(EVERYONE) and models["parameter_default"] == "ensemble"
    assert all(endpoint["description"] for endpoint in endpoints.values())


def test_predict_answers_as_the_library_does(client, film):
    answer = client.predict(handle_file(film), model="resnet50", top_k=4, api_name="/predict")
    assert set(answer) == {"film", "refused", "notices", "predictions", "failures", "in_words"}
    assert answer["film"] == film.name and not answer["refused"]
    [prediction] = answer["predictions"]
    expected = fracture_lib.load("resnet50").predict(film, top_k=4).scores
    assert [s["label"] for s in prediction["scores"]] == [s.label for s in expected]
    assert prediction["scores"][0]["probability"] == pytest.approx(expected[0].probability, abs=1e-5)


def test_compare_and_models_know_everyone(client, film):
    answer = client.predict(handle_file(film), api_name="/compare")
    assert [p["model"] for p in answer["predictions"]] == list(EVERYONE)
    models = client.predict(api_name="/models")
    assert [m["model"] for m in models] == list(EVERYONE)
    assert all(0 < m["accuracy"]["low"] < m["accuracy"]["high"] < 1 and m["bytes"] > 1e5 for m in models)


def test_a_batch_answers_in_order_around_a_bad_film(client, film, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    answers = client.predict([handle_file(p) for p in (film, bad, film)], api_name="/predict_batch")
    assert [a["film"] for a in answers] == [film.name, "bad.png", film.name]
    assert "not a picture" in answers[1]["error"] and len(answers[2]["predictions"]) == len(EVERYONE)


@pytest.mark.parametrize(
    ("content", "arguments", "sentence"),
    [(b"no picture", {}, "not a picture"), (None, {"top_k": 11}, "from 1 to 10")],
)
def test_what_is_wrong_is_said_in_a_sentence(client, film, tmp_path, content, arguments, sentence):
    path = film
    if content:
        path = tmp_path / "bad.png"
        path.write_bytes(content)
    with pytest.raises(AppError, match=sentence):
        client.predict(handle_file(path), api_name="/predict", **arguments)


def test_the_same_verbs_are_mcp_tools(address, film):
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def talk():
        async with (
            streamable_http_client(f"{address}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            picture = "data:image/png;base64," + base64.b64encode(film.read_bytes()).decode()
            called = await session.call_tool("predict", {"film": picture, "model": "pytorch-cnn", "top_k": 2})
            return tools, called

    tools, called = asyncio.run(talk())
    assert set(tools) == {name.strip("/") for name in SCHEMA}
    assert "Not a medical device" in tools["predict"].description
    assert not called.isError and "pytorch-cnn" in called.content[0].text


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_readmes_client_examples_run(address, film, tmp_path):
    (tmp_path / "film.png").write_bytes(film.read_bytes())
    [python] = [b for b in blocks("python") if "gradio_client" in b]
    [shell] = [b for b in blocks("sh") if "curl" in b]
    for command, code in (([sys.executable, "-c"], python), (["bash", "-euc"], shell)):
        code = code.replace("http://127.0.0.1:7860", address)
        done = subprocess.run([*command, code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "resnet50" in done.stdout and "probability" in done.stdout


class Held(Panel):
    """A panel that answers about held.png only when it is let go."""

    def __init__(self):
        super().__init__()
        self.asked, self.let_go = Event(), Event()

    def ask(self, source, *names, **options):
        if Path(source).name == "held.png":
            self.asked.set()
            assert self.let_go.wait(240)
        return super().ask(source, *names, **options)


@pytest.fixture
def crowded(film, tmp_path):
    """(panel, client, path of held.png) of a page that asks about one film at a time and lets one wait."""
    held = tmp_path / "held.png"
    held.write_bytes(film.read_bytes())
    panel = Held()
    page = build_page(panel, [("drawn", film)]).queue(max_size=1, default_concurrency_limit=1)
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, ssr_mode=False)
    try:
        yield panel, Client(address, verbose=False), handle_file(held)
    finally:
        panel.let_go.set()
        page.close()


def test_a_full_queue_says_so_at_once_and_loses_nobody(crowded, film):
    panel, client, held = crowded
    first = client.submit(held, model="pytorch-cnn", api_name="/predict")
    assert panel.asked.wait(240)
    second = client.submit(handle_file(film), model="pytorch-cnn", api_name="/predict")
    while second.status().code is not Status.IN_QUEUE:
        sleep(0.05)
    with pytest.raises(QueueError, match="try again"):
        client.predict(handle_file(film), model="pytorch-cnn", api_name="/predict")
    panel.let_go.set()
    assert [job.result()["film"] for job in (first, second)] == ["held.png", film.name]


def test_one_film_does_not_wait_behind_many(crowded, film):
    panel, client, held = crowded
    many = client.submit([held], api_name="/predict_batch")
    assert panel.asked.wait(240)
    assert client.predict(handle_file(film), model="pytorch-cnn", api_name="/predict")["predictions"]
    panel.let_go.set()
    assert many.result()[0]["film"] == "held.png"
