"""The page in a real browser: `python app.py` in a process of its own, Debian's Chromium."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from bad_images import BAD_FILES
from playwright.sync_api import expect, sync_playwright

import fracture_lib

expect.set_options(timeout=30_000)

ROOT = Path(__file__).parent.parent
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TITLES = [spec.title for spec in fracture_lib.MODELS.values()]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "app.txt"
    with log.open("w") as out:
        app = subprocess.Popen(
            [sys.executable, "app.py"],
            cwd=ROOT,
            env={**os.environ, "GRADIO_SERVER_PORT": str(port)},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert app.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield url
    finally:
        app.terminate()
        app.wait()
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.foreign = []
    page.on("request", lambda r: page.foreign.append(r.url) if not r.url.startswith(address) else None)
    page.goto(address)
    expect(page.get_by_role("heading", name="Fracture type from an X-ray")).to_be_visible()
    yield page
    context.close()


def upload(page, path):
    page.locator("input[type=file]").first.set_input_files(path)


def answers(page):
    """Title of each model on show -> the classes and percentages of its answer."""
    found = {}
    for label in page.locator("[data-testid=label-output-value]").all():
        block = label.locator("xpath=ancestor::div[contains(@class, 'block')][1]")
        title = next(t for t in TITLES if t in block.inner_text())
        found[title] = re.findall(r"([A-Z][a-z]+)\s+(\d+)%", block.inner_text())
    return found


def test_the_page_says_what_it_is_not(page):
    for sentence in ("Not a medical device", 'no "no fracture" class'):
        expect(page.get_by_text(sentence)).to_be_visible()
    assert [url for url in page.foreign if not url.startswith(("data:", "blob:"))] == []


def test_a_film_goes_in_and_three_models_answer_side_by_side(page, film):
    upload(page, film)
    expect(page.locator("[data-testid=label-output-value]")).to_have_count(3)
    found = answers(page)
    assert set(found) == set(TITLES)
    for name, spec in fracture_lib.MODELS.items():
        expected = fracture_lib.load(name).predict(film).scores
        shown = [(label, int(number)) for label, number in found[spec.title]]
        assert shown == [(s.label, round(100 * s.probability)) for s in expected]
    boxes = [page.get_by_text(t, exact=True).last.bounding_box() for t in TITLES]
    assert len({round(b["y"]) for b in boxes}) == 1 and boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"]
    text = page.inner_text("body")
    assert text.count("bundled with the app") == 3 and text.count("95 % interval") == 3
    assert len(re.findall(r"Answered in \d+ ms \(onnx\)", text)) == 3
    expect(page.get_by_text("What the models see")).to_be_visible()


def test_one_model_and_another_k(page, film):
    page.get_by_label("ResNet50 in TensorFlow").check()
    page.get_by_role("spinbutton").fill("5")
    upload(page, film)
    expect(page.locator("[data-testid=label-output-value]")).to_have_count(1)
    found = answers(page)
    assert list(found) == ["ResNet50 in TensorFlow"]
    assert len(found["ResNet50 in TensorFlow"]) == 5


def test_an_example_answers(page):
    page.get_by_text("Hairline (drawn)").click()
    expect(page.locator("[data-testid=label-output-value]")).to_have_count(3)


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_gets_a_sentence_and_a_good_one_still_works(page, film, tmp_path, name):
    data, word = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    upload(page, path)
    expect(page.locator("#message")).to_contain_text(re.compile(word))
    assert "Traceback" not in page.inner_text("body")
    page.get_by_label("Clear").first.click()
    upload(page, film)
    expect(page.locator("[data-testid=label-output-value]")).to_have_count(3)
    expect(page.locator("#message")).to_have_count(0)


def test_without_a_film_the_page_says_what_to_do(page):
    expect(page.locator("#message")).to_contain_text("Upload a film")
    page.get_by_role("button", name="Name the fracture").click()
    expect(page.locator("#message")).to_contain_text("Upload a film")


def test_a_phone_sees_no_sideways_scroll(browser, address, film):
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(address)
    upload(page, film)
    expect(page.locator("[data-testid=label-output-value]")).to_have_count(3)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()
