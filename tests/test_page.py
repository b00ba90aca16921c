"""The page in a real browser: `python app.py` in a process of its own, Debian's Chromium."""

import base64
import csv
import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from bad_images import BAD_FILES, saved
from conftest import running_app
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from test_dicom import dicom

import fracture_lib
from fracture_lib.drawing import draw_film
from fracture_lib.panel import EVERYONE

expect.set_options(timeout=120_000)

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TABS = ("One film", "Many films", "Models")
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def open_page(browser, address):
    """A function that opens the page, its first example answered, and returns it."""
    contexts = {}  # by what they emulate: pages of one share a cache, as a visitor's do

    def open_page(query="", dark=False, width=1280, height=900):
        scheme = "dark" if dark else "light"
        if (scheme, width, height) not in contexts:
            contexts[scheme, width, height] = browser.new_context(
                color_scheme=scheme, viewport={"width": width, "height": height}
            )
        page = contexts[scheme, width, height].new_page()
        page.set_default_timeout(120_000)
        page.foreign = []
        page.on("request", lambda r: page.foreign.append(r.url) if not r.url.startswith(address) else None)
        page.goto(f"{address}/{query}")
        expect(page.locator("#answers .card").first).to_be_visible()
        return page

    return open_page


@pytest.fixture
def visit(open_page):
    """As `open_page`, and the page is closed after the test."""
    pages = []

    def visit(*arguments, **options):
        pages.append(open_page(*arguments, **options))
        return pages[-1]

    yield visit
    for page in pages:
        page.close()


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def page(open_page, kept, request):
    """One page for all tests that ask for no more, as loading it is slow; a new one after a failure."""
    if kept.get("failures") != request.session.testsfailed:
        kept |= {"page": open_page(), "failures": request.session.testsfailed}
    kept["page"].get_by_role("tab", name="One film").click()
    return kept["page"]


def clear(panel):
    if panel.get_by_label("Clear").count():
        panel.get_by_label("Clear").first.click()


def upload(page, *paths, tab="#one-film"):
    """Put `paths` into the upload box of a tab, in place of what is there."""
    panel = page.locator(tab)
    clear(panel)
    panel.locator("input[type=file]").first.set_input_files([str(p) for p in paths])


def answers(page):
    """Name of each model on show -> [(class, per cent)]."""
    return {
        card.get_attribute("data-model"): re.findall(
            r"([A-Z][a-z]+)\s+(\d+\.\d) %", card.locator("ol").inner_text()
        )
        for card in page.locator("#answers .card").all()
    }


def expected(film, names=EVERYONE, top_k=3):
    return {
        name: [
            (s.label, f"{100 * s.probability:.1f}")
            for s in fracture_lib.load(name).predict(film, top_k).scores
        ]
        for name in names
    }


def wait_for(page, film, names=EVERYONE, top_k=3):
    """Wait until the answers on show are those of `film`."""
    wanted = expected(film, names, top_k)
    for name, scores in wanted.items():
        card = page.locator(f"#answers .card[data-model={name}]")
        expect(card).to_contain_text(re.compile(rf"{scores[0][0]}\s*{re.escape(scores[0][1])} %"))
    assert answers(page) == wanted


def pixels_of(image):
    """An <img> with a data URI -> its pixels, grey."""
    data = base64.b64decode(image.get_attribute("src").split(",", 1)[1])
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))


def test_the_page_says_what_it_is_not_and_answers_the_first_example_unasked(visit):
    page = visit()
    for sentence in ("Not a medical device", 'no "no fracture" class'):
        expect(page.get_by_text(sentence).first).to_be_visible()
    wait_for(page, draw_film("Spiral"))
    assert [url for url in page.foreign if not url.startswith(("data:", "blob:"))] == []


def film_files(tmp_path):
    film = draw_film("Oblique", seed=3)
    deep = Image.fromarray(np.asarray(film).astype(np.uint16) * 200 + 1000)
    files = {
        "eight.png": saved(film),
        "sixteen.png": saved(deep),
        "dicom-without-extension": dicom(np.asarray(film)),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        yield film, tmp_path / name


def test_png_16_bits_and_dicom_give_the_same_answers_and_show_what_was_seen(page, tmp_path):
    for film, path in film_files(tmp_path):
        upload(page, path)
        expect(page.locator("#one-film")).to_contain_text(path.name)
        wait_for(page, film)
        seen = np.round(255 * fracture_lib.preprocess(film))
        shown = pixels_of(page.locator("#pictures .seen"))
        assert np.abs(shown - seen).max() <= 1
        assert page.locator("#pictures .film").evaluate("e => e.naturalHeight / e.naturalWidth") == 1.5
    text = page.inner_text("#answers")
    assert text.count("bundled with the app") == 4 and text.count("Measured accuracy") == 4


def test_a_deep_link_picks_one_model_and_k_is_adjustable(visit):
    page = visit("?model=resnet50")
    expect(page.get_by_label("ResNet50 in TensorFlow", exact=True).first).to_be_checked()
    wait_for(page, draw_film("Spiral"), ["resnet50"])
    page.get_by_role("spinbutton").first.fill("5")
    page.get_by_role("spinbutton").first.press("Enter")
    page.get_by_role("slider").first.press("ArrowRight")
    expect(page.locator("#answers .bars li")).to_have_count(6)


def test_the_comparison_sorts(page):
    table = page.locator("#compare table")
    expect(table.locator("tbody tr")).to_have_count(4)
    heading = table.get_by_role("button", name="Model", exact=True)
    for order in ("ascending", "descending"):
        heading.click()
        expect(table.locator("th").first).to_have_attribute("aria-sort", order)
        names = table.locator("tbody td:first-child").all_inner_texts()
        assert names == sorted(names, reverse=order == "descending")
    table.get_by_role("button", name="MB").click()
    sizes = [float(text) for text in table.locator("tbody td:last-child").all_inner_texts()]
    assert sizes == sorted(sizes) and sizes[0] < 2 < 50 < sizes[-1]


def test_each_model_has_a_map_with_a_class_and_an_opacity(page):
    overlays = page.locator("#maps .overlay")
    expect(overlays).to_have_count(4)
    before = [image.get_attribute("src") for image in overlays.all()]
    caption = page.locator("#maps figcaption").first
    other = "Hairline" if "Hairline" not in caption.inner_text() else "Oblique"
    page.locator("#why input").click()
    page.get_by_role("option", name=other).click()
    expect(caption).to_contain_text(other)
    after = [image.get_attribute("src") for image in overlays.all()]
    assert all(old != new for old, new in zip(before, after, strict=True))
    page.locator("#opacity input[type=number]").fill("20")
    expect(overlays.first).to_have_css("opacity", "0.2")


def test_several_films_can_be_looked_at_in_turn(page, tmp_path):
    films = {label: draw_film(label, seed=1) for label in ("Hairline", "Comminuted")}
    for label, film in films.items():
        film.save(tmp_path / f"{label}.png")
    upload(page, *(tmp_path / f"{label}.png" for label in films))
    wait_for(page, films["Hairline"])
    page.locator("#pick input").click()
    page.get_by_role("option", name="2. Comminuted.png").click()
    wait_for(page, films["Comminuted"])


def test_a_film_can_be_pasted(page):
    film = draw_film("Impacted", seed=2)
    page.evaluate(
        """data => {
            const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
        }""",
        base64.b64encode(saved(film)).decode(),
    )
    wait_for(page, film)


def test_an_example_answers(page):
    page.get_by_text("Hairline (drawn)").click()
    wait_for(page, draw_film("Hairline"))


@pytest.mark.parametrize("name", ["text.png", "bomb.png", "animated.gif", "report.dcm"])
def test_a_bad_file_gets_a_sentence_and_a_good_one_still_works(page, film, tmp_path, name):
    data, word = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    upload(page, path)
    expect(page.locator("#message")).to_contain_text(re.compile(word))
    assert "Traceback" not in page.inner_text("body")
    expect(page.locator("#answers .card")).to_have_count(0)
    upload(page, film)
    expect(page.locator("#answers .card")).to_have_count(4)
    expect(page.locator("#message .message")).to_have_count(0)


def test_a_photograph_is_refused_with_a_way_on(page, tmp_path):
    y, x = np.mgrid[0:1:200j, 0:1:300j]
    path = tmp_path / "sunset.jpg"
    Image.fromarray(np.uint8(255 * np.dstack([x, y, 1 - x]))).save(path)
    upload(page, path)
    expect(page.locator("#message")).to_contain_text("This does not look like a bone X-ray")
    expect(page.locator("#answers .card")).to_have_count(0)
    page.get_by_role("button", name="Ask the models all the same").click()
    expect(page.locator("#answers .card")).to_have_count(4)
    expect(page.locator("#message")).to_contain_text("This does not look like a bone X-ray")


def test_without_a_film_the_page_says_what_to_do(page):
    clear(page.locator("#one-film"))
    expect(page.locator("#message")).to_contain_text("Drop a film here")
    page.get_by_role("button", name="Name the fracture").click()
    expect(page.locator("#message")).to_contain_text("Drop a film here")


def test_a_visitor_whose_film_was_forgotten_is_told_so_and_can_go_on(browser, film, tmp_path):
    few = "import app; app.VISITORS = 1; app.main(app.Panel())"
    with (
        running_app(tmp_path / "log.txt", command=["-c", few], GRADIO_TEMP_DIR=str(tmp_path)) as address,
        browser.new_page() as page,
        browser.new_page() as other,
    ):
        page.goto(address)
        wait_for(page, draw_film("Spiral"))
        upload(page, film)
        expect(page.locator("#answers .card").first).to_be_visible()
        other.goto(address)
        wait_for(other, draw_film("Spiral"))
        page.get_by_label("ResNet50 in TensorFlow", exact=True).first.check()
        expect(page.locator("#message")).to_contain_text("This answer is not kept here any more")
        expect(page.locator("#answers .card")).to_have_count(4)
        [kept] = tmp_path.rglob(film.name)
        kept.unlink()  # as the page does after fifteen minutes
        page.get_by_role("button", name="Name the fracture").click()
        expect(page.locator("#message")).to_contain_text("give it again")
        expect(page.locator("#answers .card")).to_have_count(0)
        upload(page, film)
        expect(page.locator("#answers .card")).to_have_count(1)
        expect(page.locator("#message .message")).to_have_count(0)


HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{constructor}} {% raw %}"


def test_a_hostile_file_name_is_only_shown(visit, film):
    page = visit()
    page.on("dialog", lambda dialog: pytest.fail(f"the file name ran: {dialog.message}"))
    page.get_by_role("tab", name="Many films").click()
    name = f"{HOSTILE}.png"
    payload = {"name": name, "mimeType": "image/png", "buffer": film.read_bytes()}
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, film.read_bytes())
        packed = {"name": "films.zip", "mimeType": "application/zip", "buffer": file.getvalue()}
    panel = page.locator("#many-films")
    panel.locator("input[type=file]").first.set_input_files([packed, payload])
    page.get_by_role("button", name="Name them all").click()
    expect(page.locator("#batch-message")).to_contain_text("2 films, all read")
    assert page.locator("#batch-table tbody td").first.inner_text() == name
    assert page.locator("#batch-table img").count() == 0


def test_a_batch_with_a_bad_film_ends_with_a_csv_and_a_report(page, film, tmp_path, browser):
    page.get_by_role("tab", name="Many films").click()
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    second = tmp_path / "second.png"
    draw_film("Greenstick").save(second)
    upload(page, film, bad, second, tab="#many-films")
    page.get_by_role("button", name="Name them all").click()
    expect(page.locator("#batch-message")).to_contain_text("3 films, 1 of them not readable")
    rows = page.locator("#batch-table tbody tr")
    expect(rows).to_have_count(3)
    assert "not a picture" in rows.nth(1).inner_text()
    files = {}
    for button in ("csv", "report"):
        with page.expect_download() as download:
            page.locator(f"#{button}").click()
        files[button] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[button])
    lines = list(csv.DictReader(files["csv"].open(encoding="utf-8")))
    assert [line["film"] for line in lines] == [film.name] * 4 + ["bad.png"] + ["second.png"] * 4
    report = browser.new_page()
    report.goto(files["report"].as_uri())
    text = report.inner_text("body")
    assert text.count("Not a medical device") == 2 and film.name in text and "second.png" in text
    assert report.locator("article .overlay").count() == 8
    pages = re.findall(rb"/Type\s*/Page\b", report.pdf(prefer_css_page_size=True))
    assert len(pages) == 2, "one page a film"
    report.close()


def test_the_models_tab_draws_what_was_measured(visit):
    page = visit()
    page.get_by_role("tab", name="Models").click()
    panel = page.locator("#models")
    expect(panel.locator(".js-plotly-plot")).to_have_count(5)
    expect(panel.locator("table.sortable").first).to_contain_text("17.18 %")
    evaluation = fracture_lib.load("pytorch-cnn").evaluation
    recall = str(evaluation["per_class"][0]["recall"])
    expect(panel.locator("table.sortable").last).to_contain_text(recall)
    panel.get_by_label("Ensemble of all three", exact=True).check()
    expect(panel.locator(".js-plotly-plot")).to_have_count(4)  # the ensemble is not trained
    panel.get_by_text("Model card", exact=True).click()
    expect(panel).to_contain_text("no card of its own")
    assert [url for url in page.foreign if not url.startswith(("data:", "blob:"))] == []


def test_the_keyboard_alone_names_a_fracture(page):
    clear(page.locator("#one-film"))
    expect(page.locator("#answers .card")).to_have_count(0)
    for _ in range(40):
        page.keyboard.press("Tab")
        if "Hairline (drawn)" in page.evaluate("document.activeElement.innerText || ''"):
            break
    page.keyboard.press("Enter")
    wait_for(page, draw_film("Hairline"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_serious_violation(visit, dark):
    page = visit(dark=dark)
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        if tab == "Models":
            expect(page.locator(".js-plotly-plot")).to_have_count(5)
        # Gradio's own button to add a file holds another control.
        found = Axe().run(page, context={"exclude": [[".films-in .icon-button"]]}).response["violations"]
        grave = [
            (v["id"], v["help"], [n["html"][:200] for n in v["nodes"]])
            for v in found
            if v["impact"] in ("serious", "critical")
        ]
        assert grave == [], tab


def test_a_phone_sees_no_sideways_scroll(visit):
    page = visit(**PHONE)
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        if tab == "Models":
            expect(page.locator(".js-plotly-plot")).to_have_count(5)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, tab


def test_the_readmes_screenshots(visit, request, tmp_path):
    """`python -m pytest tests/test_page.py -k screenshots --screenshots docs` writes them."""
    folder = Path(request.config.getoption("--screenshots") or tmp_path)
    page = visit(height=1000)
    page.screenshot(path=folder / "one-film.png", full_page=True)
    page = visit("?model=resnet50", dark=True, **PHONE)
    page.screenshot(path=folder / "phone-dark.png")
    assert all(path.stat().st_size > 20_000 for path in folder.glob("*.png"))
