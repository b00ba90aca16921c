"""The page in a real browser: `python app.py` in a process of its own, Debian's Chromium."""

import base64
import csv
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

import fracture_lib
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.inference.prediction import ComparisonResult, summarize_types
from fracture_lib.registry import ALL_MODELS, DETECTOR, ENSEMBLE, model_title
from fracture_lib.webui.examples import EXAMPLES
from fracture_lib.webui.rendering import SHOWN_MODELS, percent, summarize_answer
from tests.helpers import browser as chromium
from tests.helpers.app_runner import running_app
from tests.helpers.bad_inputs import BAD_FILES
from tests.helpers.dicom_files import dicom
from tests.helpers.held_uploads import held_uploads
from tests.helpers.images import encode_image

pytestmark = pytest.mark.browser
expect.set_options(timeout=120_000)

TABS = ("Single X-ray", "Batch", "Models")
DESKTOP, TABLET, PHONE, NARROW = (
    {"width": w, "height": h} for w, h in ((1366, 900), (820, 1180), (390, 844), (320, 640))
)
MAX_LAYOUT_SHIFT = 0.05
OBSERVE_SHIFTS = """() => {
    window.layoutShift = 0;
    new PerformanceObserver(list => {
        for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.layoutShift += entry.value;
    }).observe({ type: "layout-shift" });
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.launch() as browser:
        yield browser


@pytest.fixture(scope="module")
def open_page(browser, app_url) -> Callable[..., Page]:
    """A function that opens the page; `foreign_requests` lists requests to any other server."""
    contexts = {}  # by what they emulate: pages of one share a cache, as a visitor's do

    def open_page(query="", dark=False, width=1366, height=900):
        scheme = "dark" if dark else "light"
        if (scheme, width, height) not in contexts:
            contexts[scheme, width, height] = browser.new_context(
                color_scheme=scheme, viewport={"width": width, "height": height}
            )
        page = contexts[scheme, width, height].new_page()
        page.set_default_timeout(120_000)
        page.foreign_requests = []
        own = (app_url, "data:", "blob:")
        page.on(
            "request",
            lambda r: None if r.url.startswith(own) else page.foreign_requests.append(r.url),
        )
        page.goto(f"{app_url}/{query}")
        expect(page.get_by_role("tab", name="Models")).to_be_visible()
        return page

    return open_page


@pytest.fixture
def visit(open_page) -> Iterator[Callable[..., Page]]:
    """As `open_page`, and the page is closed after the test."""
    pages = []

    def visit(*arguments, **options):
        pages.append(open_page(*arguments, **options))
        return pages[-1]

    yield visit
    for page in pages:
        page.close()


@pytest.fixture(scope="module")
def shared() -> dict:
    return {}


@pytest.fixture
def page(open_page, shared, request) -> Page:
    """A page that tests share, as loading it is slow; a new one after a failure."""
    if shared.get("failures") != request.session.testsfailed:
        shared |= {"page": open_page(), "failures": request.session.testsfailed}
    shared["page"].get_by_role("tab", name="Single X-ray").click()
    return shared["page"]


def clear(tab: Locator) -> None:
    """Empty the upload box of a tab."""
    if tab.get_by_label("Clear").count():
        tab.get_by_label("Clear").first.click()


def upload(page: Page, *paths: Path, tab: str = "#single-xray") -> None:
    """Put files into the upload box of a tab, in place of its content."""
    clear(page.locator(tab))
    page.locator(tab).locator("input[type=file]").first.set_input_files([str(p) for p in paths])


def pick_example(page: Page, number: int = 0) -> ComparisonResult:
    """Click on an example; return the library's result for it."""
    clear(page.locator("#single-xray"))
    path, caption = EXAMPLES[number]
    page.locator("#examples").get_by_text(caption, exact=True).click()
    return fracture_lib.compare(path)


def shown_matrix(page: Page) -> dict[str, list[str]]:
    """Return {type: per cent of each model} of the table on the page, read at once as it may be replaced."""
    rows: dict[str, list[str]] = page.locator("#matrix tbody").evaluate(
        """body => Object.fromEntries(
            [...body.rows].map(row => {
                const [type, ...shares] = [...row.cells].map(cell => cell.innerText);
                return [type, shares];
            })
        )"""
    )
    return rows


def expect_answer(page: Page, result: ComparisonResult, model: str = ENSEMBLE, top_k: int = 5) -> None:
    """Wait until the page shows a result as the answer of `model`."""
    names = ALL_MODELS if model == ENSEMBLE else (model,)
    for selector, text in {
        ".fracture": result.fracture.message,
        ".summary": summarize_answer(result, names),
    }.items():
        expect(page.locator(f"#verdict {selector}")).to_have_text(text.replace(" %", "\u00a0%"))
    ranking = result.predictions[model].scores[:top_k]
    shares = {
        name: {score.label: score.probability for score in prediction.scores}
        for name, prediction in result.predictions.items()
    }
    expected = {s.label: [percent(shares[name][s.label]) for name in SHOWN_MODELS] for s in ranking}
    expect(page.locator("#matrix tbody tr")).to_have_count(top_k)
    expect(page.get_by_role("status").filter(has_text=result.fracture.message)).to_have_count(1)
    assert shown_matrix(page) == expected


def expect_start(page: Page) -> None:
    expect(page.locator("#examples")).to_be_visible()
    expect(page.locator("#matrix")).to_have_count(0)


# Single X-ray


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_first_view_needs_no_scrolling_and_answers_nothing(visit, size):
    page = visit(**size)
    for text in ("Drop a bone X-ray", "Not a medical device", "of the time in testing"):
        box = page.get_by_text(text).first.bounding_box()
        assert box and box["y"] + box["height"] < size["height"], text
    for selector in ("#upload", "#examples button >> nth=0", "#examples button >> nth=-1"):
        box = page.locator(selector).bounding_box()
        assert box and box["y"] + box["height"] <= size["height"], selector
    expect_start(page)
    assert page.evaluate("document.activeElement === document.body")
    assert page.foreign_requests == []


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_answer_fits_one_screen_and_moves_nothing(visit, size):
    page = visit(**size)
    page.evaluate(OBSERVE_SHIFTS)
    expect_answer(page, pick_example(page))
    stage = page.locator("#viewer .stage")
    if size == DESKTOP:
        for element in (
            stage,
            page.locator("#matrix"),
            page.locator("#options"),
            page.locator("#viewer .tools"),
        ):
            box = element.bounding_box()
            assert box and box["y"] >= 0 and box["y"] + box["height"] <= size["height"]
        assert stage.bounding_box()["height"] > 450
    else:  # scrolled to the X-ray, with the verdict below it
        page.wait_for_function(
            "Math.abs(document.querySelector('#viewer .stage').getBoundingClientRect().top) < 60"
        )
        assert page.locator("#verdict .fracture").bounding_box()["y"] < size["height"]
    assert page.evaluate("window.layoutShift") < MAX_LAYOUT_SHIFT


def image_files(folder: Path) -> Iterator[tuple[Image.Image, Path]]:
    image = synthetic_radiograph("Oblique", seed=3)
    sixteen_bits = Image.fromarray(np.asarray(image).astype(np.uint16) * 200 + 1000)
    contents = {
        "eight.png": encode_image(image),
        "sixteen.png": encode_image(sixteen_bits),
        "dicom-without-extension": dicom(np.asarray(image)),
    }
    for name, data in contents.items():
        (folder / name).write_bytes(data)
        yield image, folder / name


def decode_image(image: Locator) -> np.ndarray:
    """Return the greyscale pixels of an <img> with a data URI."""
    data = base64.b64decode((image.get_attribute("src") or "").split(",", 1)[1])
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))


def test_png_16_bit_png_and_dicom_give_the_same_answer_and_show_the_model_input(page, tmp_path):
    for image, path in image_files(tmp_path):
        upload(page, path)
        expect(page.locator("#single-xray")).to_contain_text(re.compile(rf"{path.stem}\s*{path.suffix}"))
        expect_answer(page, fracture_lib.compare(image))
        page.locator("#evidence").get_by_text("Show evidence").click()
        shown = decode_image(page.locator(".model-input"))
        views = np.hstack(list(fracture_lib.preprocess(image)))
        assert np.abs(shown - np.round(255 * views)).max() <= 1
        assert page.locator("#viewer .xray").evaluate("e => e.naturalHeight / e.naturalWidth") == 1.5


def test_address_holds_the_state_and_restores_it(visit, page):
    result = pick_example(page)
    expect_answer(page, result)
    page.locator("#options").click()
    page.locator("#model").get_by_label(model_title("resnet50"), exact=True).check()
    expect_answer(page, result, "resnet50")
    page.locator("#top-k input[type=number]").fill("7")
    page.locator("#top-k input[type=number]").press("Enter")
    expect_answer(page, result, "resnet50", 7)
    page.get_by_role("tab", name="Batch").click()
    page.wait_for_url(re.compile("tab=batch"))
    page.get_by_role("tab", name="Single X-ray").click()
    page.wait_for_url(lambda url: "tab=" not in url)
    page.go_back()
    expect(page.locator("#batch")).to_be_visible()
    page.go_back()
    expect(page.locator("#single-xray")).to_be_visible()
    query = "?" + page.url.partition("?")[2]
    assert "model=resnet50" in query and "top_k=7" in query
    restored = visit(query)
    expect_answer(restored, pick_example(restored), "resnet50", 7)
    expect(visit("?tab=models&model=nonsense&top_k=x").locator("#accuracy")).to_be_visible()
    page.locator("#model").get_by_label(model_title(ENSEMBLE), exact=True).check()
    page.locator("#top-k input[type=number]").fill("5")
    page.locator("#top-k input[type=number]").press("Enter")
    expect_answer(page, result)


def test_evidence_is_laid_over_the_xray_for_any_model_and_type(page):
    result = pick_example(page)
    expect_answer(page, result)
    overlay = page.locator("#viewer .overlay")
    expect(overlay).to_have_attribute("alt", "")
    page.locator("#evidence").get_by_text("Show evidence").click()
    expect(overlay).to_have_attribute("alt", "Where the detector looks")
    assert overlay.bounding_box() == page.locator("#viewer .xray").bounding_box()
    for label, option in (("Evidence of", model_title("resnet50")), ("Type", "Impacted")):
        page.locator("#evidence").get_by_label(label, exact=True).click()
        page.get_by_role("option", name=option, exact=True).click()
    expect(overlay).to_have_attribute("alt", "ResNet50 in TensorFlow, Impacted")
    expect(page.locator("#evidence")).to_contain_text("areas support Impacted")
    page.locator("#opacity input[type=number]").fill("20")
    expect(overlay).to_have_css("opacity", "0.2")
    page.locator("#evidence").get_by_text("Show evidence").click()
    expect(overlay).to_have_attribute("alt", "")


def test_evidence_follows_the_chosen_model(page):
    result = pick_example(page)
    expect_answer(page, result)
    page.locator("#evidence").get_by_text("Show evidence").click()
    page.locator("#evidence").get_by_label("Evidence of", exact=True).click()
    page.get_by_role("option", name=model_title(ENSEMBLE), exact=True).click()
    overlay = page.locator("#viewer .overlay")
    expect(overlay).to_have_attribute("alt", f"{model_title(ENSEMBLE)}, {result.predictions[ENSEMBLE].label}")
    page.locator("#options").click()
    labels = {name: prediction.label for name, prediction in result.predictions.items()}
    other, label = next((name, label) for name, label in labels.items() if label != labels[ENSEMBLE])
    page.locator("#model").get_by_label(model_title(other), exact=True).check()
    expect(overlay).to_have_attribute("alt", f"{model_title(ENSEMBLE)}, {label}")
    page.locator("#model").get_by_label(model_title(ENSEMBLE), exact=True).check()
    page.locator("#options").click()
    page.locator("#evidence").get_by_label("Evidence of", exact=True).click()
    page.get_by_role("option", name=model_title(DETECTOR), exact=True).click()
    expect(overlay).to_have_attribute("alt", "Where the detector looks")


def test_evidence_on_a_phone_keeps_the_xray_in_sight(visit):
    page = visit(**PHONE)
    expect_answer(page, pick_example(page))
    page.locator("#evidence").get_by_text("Show evidence").click()
    expect(page.locator("#viewer .overlay")).to_have_attribute("alt", "Where the detector looks")
    page.locator("#opacity").scroll_into_view_if_needed()
    stage = page.locator("#viewer .stage").bounding_box()
    assert stage and 0 <= stage["y"] < 40 and stage["height"] < PHONE["height"] / 2


def test_viewer_zooms_moves_and_changes_the_tones_until_the_next_image(page):
    expect_answer(page, pick_example(page))
    viewer, stage, xray = (page.locator(f"#viewer {part}") for part in ("", ".stage", ".xray"))
    height = xray.bounding_box()["height"]
    viewer.get_by_label("Zoom in").click()
    assert xray.bounding_box()["height"] == pytest.approx(1.5 * height, rel=0.01)
    before = xray.bounding_box()
    stage.focus()
    page.keyboard.press("ArrowDown")
    assert xray.bounding_box()["y"] < before["y"]
    for _ in range(10):  # no further than the edge
        page.keyboard.press("ArrowUp")
    assert xray.bounding_box()["y"] == pytest.approx(stage.bounding_box()["y"], abs=2)
    expect(stage).to_have_css("cursor", "grab")
    viewer.get_by_label("Invert").check()
    viewer.get_by_label("Contrast").fill("2")
    expect(xray).to_have_css("filter", "brightness(1) contrast(2) invert(1)")
    page.locator("#evidence").get_by_text("Show evidence").click()
    expect(page.locator("#viewer .overlay")).not_to_have_attribute("alt", "")
    expect(xray).to_have_css("filter", "brightness(1) contrast(2) invert(1)")
    page.keyboard.press("Escape")
    expect_answer(page, pick_example(page, 1))
    expect(xray).to_have_css("filter", "brightness(1) contrast(1) invert(0)")
    assert (
        viewer.get_by_label("Contrast").input_value() == "1"
        and not viewer.get_by_label("Invert").is_checked()
    )
    assert xray.bounding_box()["height"] <= height + 1


def test_several_images_move_to_the_batch_tab_with_one_click(visit, image_path, tmp_path):
    page = visit()
    second = tmp_path / "second.png"
    synthetic_radiograph("Greenstick").save(second)
    upload(page, image_path, second)
    expect(page.locator("#message")).to_contain_text("Classify several X-rays")
    expect(page.get_by_role("button", name="Open in Batch")).to_be_focused()
    page.get_by_role("button", name="Open in Batch").click()
    page.get_by_role("button", name="Classify all").click()
    expect(page.locator("#batch-message")).to_contain_text("2 images: 2 answered.")


def test_pasted_image_is_classified(page):
    clear(page.locator("#single-xray"))
    image = synthetic_radiograph("Impacted", seed=2)
    page.evaluate(
        """data => {
            const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true }));
        }""",
        base64.b64encode(encode_image(image)).decode(),
    )
    expect_answer(page, fracture_lib.compare(image))


@pytest.mark.parametrize("name", ["text.png", "bomb.png", "cmyk.jpg", "report.dcm"])
def test_bad_file_shows_its_error_and_the_next_image_is_classified(page, image_path, tmp_path, name):
    data, pattern = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    upload(page, path)
    expect(page.locator("#message")).to_contain_text(re.compile(pattern))
    assert "Traceback" not in page.inner_text("body")
    expect_start(page)
    upload(page, image_path)
    expect(page.locator("#matrix tbody tr")).to_have_count(5)
    expect(page.locator("#message .message")).to_have_count(0)


def test_photograph_is_rejected_until_classified_anyway(page, tmp_path):
    y, x = np.mgrid[0:1:200j, 0:1:300j]
    path = tmp_path / "sunset.jpg"
    Image.fromarray(np.uint8(255 * np.dstack([x, y, 1 - x]))).save(path)
    upload(page, path)
    expect(page.locator("#message")).to_contain_text(
        "This does not look like a bone X-ray. It is a colour image; X-rays are greyscale."
    )
    expect(page.locator("#matrix")).to_have_count(0)
    page.get_by_role("button", name="Classify anyway").click()
    expect(page.locator("#matrix tbody tr")).to_have_count(5)
    expect(page.locator("#message")).to_contain_text("This does not look like a bone X-ray")


def test_cleared_upload_leads_back_to_the_start(page):
    expect_answer(page, pick_example(page))
    clear(page.locator("#single-xray"))
    expect_start(page)
    expect(page.locator("#viewer .xray")).to_have_count(0)


@pytest.mark.slow
def test_visitor_whose_answer_and_upload_expired_is_told_and_can_continue(browser, image_path, tmp_path):
    one_session = "from fracture_lib.webui import launch; launch.MAX_SESSIONS = 1; launch.main()"
    with (
        running_app(tmp_path / "log.txt", command=["-c", one_session], GRADIO_TEMP_DIR=str(tmp_path)) as url,
        browser.new_page() as page,
        browser.new_page() as other,
    ):
        page.goto(url)
        upload(page, image_path)
        expect(page.locator("#matrix tbody tr")).to_have_count(5)
        other.goto(url)
        expect_answer(other, pick_example(other))
        page.locator("#options").click()
        page.locator("#model").get_by_label(model_title("resnet50"), exact=True).check()
        expect(page.locator("#message")).to_contain_text("This answer has expired")
        expect(page.locator("#matrix tbody tr")).to_have_count(5)
        upload(page, image_path)
        expect(page.locator("#message .message")).to_have_count(0)
        expect(page.locator("#matrix tbody tr")).to_have_count(5)


@pytest.mark.slow
def test_page_with_misconfigured_model_shows_the_others_on_every_tab(browser, tmp_path):
    with (
        running_app(tmp_path / "log.txt", FRACTURE_HUB_RESNET50="no revision") as url,
        browser.new_page() as page,
    ):
        page.goto(url)
        result = pick_example(page)
        failed = page.locator("#matrix .error")
        expect(failed).to_have_count(2)
        expect(failed.first).to_contain_text("FRACTURE_HUB_RESNET50")
        expect(page.locator("#matrix thead th")).to_have_count(3)
        names = ("pytorch-cnn", "tensorflow-cnn")
        summary = summarize_types(result, names).replace(" %", "\u00a0%")
        expect(page.locator("#verdict .summary")).to_have_text(summary)
        page.get_by_role("tab", name="Models").click()
        expect(page.locator("#model-errors .error")).to_have_count(2)
        expect(page.locator("#conclusions li")).to_have_count(2)
        expect(page.locator("#accuracy .js-plotly-plot")).to_be_visible()


# Batch

HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{constructor}} {% raw %}"


def open_batch(page: Page) -> None:
    page.get_by_role("tab", name="Batch").click()
    clear(page.locator("#batch"))


def test_batch_with_hostile_file_name_only_displays_it(visit, image_path):
    page = visit()
    page.on("dialog", lambda dialog: pytest.fail(f"the file name ran: {dialog.message}"))
    page.get_by_role("tab", name="Batch").click()
    name = f"{HOSTILE}.png"
    image = {"name": name, "mimeType": "image/png", "buffer": image_path.read_bytes()}
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, image_path.read_bytes())
        packed = {"name": "images.zip", "mimeType": "application/zip", "buffer": file.getvalue()}
    page.locator("#batch").locator("input[type=file]").first.set_input_files([packed, image])
    page.get_by_role("button", name="Classify all").click()
    expect(page.locator("#batch-message")).to_contain_text("2 images: 2 answered.")
    cell = page.locator("#batch-table .image-cell").first
    expect(cell).to_have_attribute("title", name)
    assert page.locator("#batch-table img:not([src^='data:'])").count() == 0


def test_batch_with_bad_image_ends_with_a_csv_file_and_a_report(page, image_path, tmp_path, browser):
    open_batch(page)
    bad, second = tmp_path / "bad.png", tmp_path / "second.png"
    bad.write_bytes(b"not an image")
    synthetic_radiograph("Greenstick").save(second)
    upload(page, image_path, bad, second, tab="#batch")
    page.get_by_role("button", name="Classify all").click()
    expect(page.locator("#batch-message")).to_contain_text("3 images: 2 answered, 1 unreadable.")
    row = page.get_by_role("row").filter(has_text="bad.png")
    expect(row).to_contain_text("unreadable")
    expect(row).to_contain_text("nsupported file")
    files = {}
    for button in ("csv", "report"):
        with page.expect_download() as download:
            page.locator(f"#{button}").click()
        files[button] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[button])
    with files["csv"].open(encoding="utf-8-sig") as file:
        names = [line["image"] for line in csv.DictReader(file)]
    assert names == [image_path.name] * 4 + ["bad.png"] + ["second.png"] * 4
    report = browser.new_page()
    report.goto(files["report"].as_uri())
    text = report.inner_text("body")
    assert text.count("Not a medical device") == 3 and image_path.name in text and "second.png" in text
    assert report.locator("article .overlay").count() == 4  # the detector and the ensemble, twice
    pages = re.findall(rb"/Type\s*/Page\b", report.pdf(prefer_css_page_size=True))
    assert len(pages) == 3, "an overview and one page per image"
    report.close()


def test_table_of_a_batch_sorts_by_the_probability_of_a_fracture(visit):
    page = visit()
    open_batch(page)
    upload(page, *(path for path, _ in EXAMPLES), tab="#batch")
    page.get_by_role("button", name="Classify all").click()
    expect(page.locator("#csv")).to_be_visible()
    title = page.locator("#batch-table th[title=Fracture]").last
    title.hover()
    title.get_by_label("Open cell menu").click()
    page.get_by_role("menuitem", name="Sort ascending").click()
    expect(page.locator("#batch-table .image-cell").nth(1)).to_have_attribute("title", "knee.jpg")
    text = page.locator("#batch-table").inner_text()
    shares = [int(share) for share in re.findall(r"(\d+)\u00a0%, [a-z]", text)]
    assert len(shares) >= len(EXAMPLES) and shares[-len(EXAMPLES) :] == sorted(shares[-len(EXAMPLES) :])


def test_click_on_a_row_opens_its_image_and_clearing_removes_the_table(page, image_path, tmp_path):
    open_batch(page)
    second = tmp_path / "second.png"
    image = synthetic_radiograph("Greenstick", seed=1)
    image.save(second)
    upload(page, image_path, second, tab="#batch")
    page.get_by_role("button", name="Classify all").click()
    expect(page.locator("#batch-message")).to_contain_text("2 images: 2 answered.")
    page.locator("#batch-table .image-cell", has_text="second").first.click()
    expect(page.locator("#single-xray")).to_be_visible()
    expect_answer(page, fracture_lib.compare(image))
    page.get_by_role("button", name="Back to the batch").click()
    expect(page.locator("#batch-table")).to_be_visible()
    expect(page.get_by_role("tab", name="Batch")).to_be_focused()
    page.go_back()
    expect(page.locator("#single-xray")).to_be_visible()
    clear(page.locator("#single-xray"))
    expect(page.get_by_role("button", name="Back to the batch")).to_have_count(0)
    open_batch(page)
    expect(page.locator("#batch-table")).to_have_count(0)
    expect(page.locator("#csv")).to_have_count(0)


# Models


def test_models_tab_concludes_and_opens_details(visit):
    page = visit()
    page.get_by_text("How it was measured").click()
    tab = page.locator("#models")
    expect(tab.locator("#conclusions li")).to_have_count(len(ALL_MODELS))
    expect(tab.locator("#accuracy .js-plotly-plot")).to_be_visible()
    for title in (
        "Which types it confuses",
        "How well it recognizes each type",
        "Whether its confidence is right",
    ):
        tab.get_by_text(title, exact=True).click()
    expect(tab.locator(".js-plotly-plot:visible")).to_have_count(4)
    for plot in tab.locator(".js-plotly-plot:visible").all():
        assert plot.bounding_box()["width"] > 800
    tab.locator("#model-details").get_by_label("ResNet50 in TensorFlow", exact=True).check()
    expect(tab.locator(".js-plotly-plot:visible")).to_have_count(1)
    tab.get_by_text("How it was trained", exact=True).click()
    expect(tab.locator(".js-plotly-plot:visible")).to_have_count(2)
    tab.get_by_text("Model card", exact=True).click()
    expect(tab).to_contain_text("Intended use")
    assert page.foreign_requests == []


# Every tab


def test_keyboard_alone_classifies_an_example(page):
    clear(page.locator("#single-xray"))
    expect_start(page)
    page.get_by_role("tab", name="Single X-ray").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#examples') !== null"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#matrix tbody tr")).to_have_count(5)
    expect(page.locator("#viewer .stage")).to_be_focused()  # in place of the example, which is gone
    expect(page.locator("#viewer .stage")).to_have_css("outline-width", "3px")
    page.locator("#single-xray").get_by_label("Clear").focus()
    page.keyboard.press("Enter")
    expect_start(page)
    expect(page.locator("#upload").get_by_role("button")).to_be_focused()


def test_slow_upload_shows_its_progress(browser, app_url, tmp_path):
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (400, 500), np.uint8)).save(path)
    progress = "parseFloat(document.documentElement.style.getPropertyValue('--upload-progress-width'))"
    with held_uploads(app_url, after=120_000) as (url, release), browser.new_page() as page:
        page.goto(url)
        upload(page, path)
        expect(page.locator("#upload")).to_contain_text("Uploading 1 file")
        page.wait_for_function(f"{progress} > 40")
        assert page.evaluate(progress) < 80
        assert page.locator("#upload .progress-bar").bounding_box()["width"] >= 40
        release.set()
        expect(page.locator("#message")).to_contain_text("This does not look like a bone X-ray")


def open_states(page: Page) -> Iterator[str]:
    """Bring the page into one state after the other."""
    yield "start"
    expect_answer(page, pick_example(page))
    yield "answer"
    for text in ("Show evidence", "What the words mean", "Options"):
        page.locator("#single-xray").get_by_text(text).click()
    expect(page.locator("#viewer .overlay")).to_have_attribute("alt", "Where the detector looks")
    yield "evidence and options"
    page.get_by_role("tab", name="Batch").click()
    yield "batch"
    upload(page, *(path for path, _ in EXAMPLES[:2]), tab="#batch")
    page.get_by_role("button", name="Classify all").click()
    expect(page.locator("#batch-message")).to_contain_text("2 images: 2 answered.")
    yield "batch with results"
    page.get_by_role("tab", name="Models").click()
    expect(page.locator("#accuracy .js-plotly-plot")).to_be_visible()
    for title in ("All figures", "Which types it confuses", "Whether its confidence is right", "Model card"):
        page.locator("#models").get_by_text(title, exact=True).click()
    expect(page.locator("#models .js-plotly-plot:visible")).to_have_count(3)
    yield "models"


IS_STILL = """() => !document.querySelector(".pending, .generating") && document.getAnimations().every(
    animation => animation.playState !== "running" || animation.effect.getTiming().iterations === Infinity)"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_serious_violation(visit, dark):
    page = visit(dark=dark)
    for state in open_states(page):
        page.wait_for_function(IS_STILL)  # Gradio dims what it is about to change
        # Gradio's own: a button for adding files that contains another control, a search box without a label.
        context = {"exclude": [[".upload-box .icon-button"], ["#batch-table .search-input"]]}
        results = Axe().run(page, context=context)
        serious = [
            (v["id"], v["help"], [node["html"][:200] for node in v["nodes"]])
            for v in results.response["violations"]
            if v["impact"] in ("serious", "critical")
        ]
        assert serious == [], state


@pytest.mark.parametrize("size", [TABLET, PHONE, NARROW], ids=["tablet", "phone", "narrow"])
def test_small_screens_need_no_horizontal_scrolling(visit, size):
    page = visit(**size)
    for state in open_states(page):
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"], state
        for selector in ("#examples img", "#matrix td"):
            for box in (element.bounding_box() for element in page.locator(f"{selector}:visible").all()):
                assert box and box["x"] + box["width"] <= size["width"], (state, selector)
        for name in page.locator("#matrix tbody th:visible").all():
            assert name.bounding_box()["height"] < 40, "a word is broken"


def test_screenshots_for_the_readme(visit, request, tmp_path):
    """`python -m pytest tests/webui/test_page.py -k screenshots --screenshots docs` writes them."""
    folder = Path(request.config.getoption("--screenshots") or tmp_path)
    page = visit()
    expect_answer(page, pick_example(page))
    page.locator("#evidence").get_by_text("Show evidence").click()
    expect(page.locator("#viewer .overlay")).to_have_attribute("alt", "Where the detector looks")
    page.screenshot(path=folder / "single-xray.png")
    page = visit(dark=True, **PHONE)
    expect(page.locator("#examples button").last).to_be_visible()
    page.screenshot(path=folder / "phone-dark.png")
    assert all(path.stat().st_size > 20_000 for path in folder.glob("*.png"))
