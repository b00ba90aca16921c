"""The page in a real browser: `python app.py` in a process of its own, Debian's Chromium."""

import base64
import csv
import io
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

import fracture_lib
from fracture_lib.data.synthetic import synthetic_radiograph
from fracture_lib.inference.prediction import summarize_types
from fracture_lib.models.report import EvaluationReport
from fracture_lib.registry import ALL_MODELS, model_title
from tests.helpers import browser as chromium
from tests.helpers.app_runner import running_app
from tests.helpers.bad_inputs import BAD_FILES
from tests.helpers.dicom_files import dicom
from tests.helpers.images import encode_image

pytestmark = pytest.mark.browser
expect.set_options(timeout=120_000)

TABS = ("Single X-ray", "Batch", "Models")
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium.launch() as browser:
        yield browser


@pytest.fixture(scope="module")
def open_page(browser, app_url) -> Callable[..., Page]:
    """A function that opens the page and returns it once its first example is classified.

    The page's attribute `foreign_requests` lists requests to any other server.
    """
    contexts = {}  # by what they emulate: pages of one share a cache, as a visitor's do

    def open_page(query="", dark=False, width=1280, height=900):
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
        expect(page.locator("#predictions .card").first).to_be_visible()
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


def shown_predictions(page: Page) -> dict[str, list[tuple[str, str]]]:
    """Return {model: [(class, per cent)]} of the cards on the page."""
    return {
        card.get_attribute("data-model") or "": re.findall(
            r"([A-Z][a-z]+)\s+(\d+\.\d) %", card.locator("ol").inner_text()
        )
        for card in page.locator("#predictions .card").all()
    }


def expect_predictions(
    page: Page, image: Image.Image, names: Sequence[str] = ALL_MODELS, top_k: int = 3
) -> None:
    """Wait until the page shows the library's predictions for `image`."""
    expected = {
        name: [(s.label, f"{100 * s.probability:.1f}") for s in prediction.scores[:top_k]]
        for name, prediction in fracture_lib.compare(image, names).predictions.items()
    }
    for name, scores in expected.items():
        card = page.locator(f"#predictions .card[data-model={name}]")
        expect(card).to_contain_text(re.compile(rf"{scores[0][0]}\s*{re.escape(scores[0][1])} %"))
    assert shown_predictions(page) == expected


def expect_summary(page: Page, image: Image.Image, names: Sequence[str] = ALL_MODELS) -> None:
    """Wait until the detector's sentence and the headline are the library's for `image` and `names`."""
    result = fracture_lib.compare(image, names)
    lines = {".fracture": result.fracture.message, ".summary": summarize_types(result)}
    for selector, text in lines.items():
        expect(page.locator(f"#predictions {selector}")).to_have_text(text.replace(" %", "\u00a0%"))


def decode_image(image: Locator) -> np.ndarray:
    """Return the greyscale pixels of an <img> with a data URI."""
    data = base64.b64decode((image.get_attribute("src") or "").split(",", 1)[1])
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))


# Single X-ray


def test_first_visit_shows_the_disclaimer_and_classifies_an_example(visit):
    page = visit()
    for text in ("Not a medical device", "The types assume a fracture"):
        expect(page.get_by_text(text).first).to_be_visible()
    expect_predictions(page, synthetic_radiograph("Spiral"))
    assert page.foreign_requests == []


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


def test_png_16_bit_png_and_dicom_give_the_same_predictions_and_show_the_model_input(page, tmp_path):
    for image, path in image_files(tmp_path):
        upload(page, path)
        expect(page.locator("#single-xray")).to_contain_text(path.name)
        expect_predictions(page, image)
        shown = decode_image(page.locator("#images .model-input"))
        views = np.hstack(list(fracture_lib.preprocess(image)))
        assert np.abs(shown - np.round(255 * views)).max() <= 1
        assert page.locator("#images .preview").evaluate("e => e.naturalHeight / e.naturalWidth") == 1.5
    text = page.inner_text("#predictions")
    assert text.count("bundled weights") == 4 and text.count("Measured accuracy") == 4


def test_deep_link_selects_a_model_and_number_of_predictions_is_adjustable(visit):
    page = visit("?model=resnet50")
    expect(page.get_by_label("ResNet50 in TensorFlow", exact=True).first).to_be_checked()
    expect_predictions(page, synthetic_radiograph("Spiral"), ["resnet50"])
    expect_summary(page, synthetic_radiograph("Spiral"), ["resnet50"])
    page.get_by_role("spinbutton").first.fill("5")
    page.get_by_role("spinbutton").first.press("Enter")
    page.get_by_role("slider").first.press("ArrowRight")
    expect(page.locator("#predictions .bars li")).to_have_count(6)


def test_headline_follows_the_chosen_model(page):
    page.get_by_text("Greenstick (drawing)").click()
    image = synthetic_radiograph("Greenstick")
    expect_predictions(page, image)
    expect_summary(page, image)
    for name in ("tensorflow-cnn", "ensemble"):
        page.locator("#model").get_by_label(model_title(name), exact=True).check()
        expect_predictions(page, image, [name])
        expect_summary(page, image, [name])
    page.locator("#model").get_by_label("Compare all", exact=True).check()
    expect_summary(page, image)


def test_comparison_table_sorts_by_any_column(page):
    table = page.locator("#comparison table")
    expect(table.locator("tbody tr")).to_have_count(4)
    heading = table.get_by_role("button", name="Model", exact=True)
    for order in ("ascending", "descending"):
        heading.click()
        expect(table.locator("th").first).to_have_attribute("aria-sort", order)
        names = table.locator("tbody td:first-child").all_inner_texts()
        assert names == sorted(names, reverse=order == "descending")
    table.get_by_role("button", name="MB").click()
    sizes = [float(text) for text in table.locator("tbody td:last-child").all_inner_texts()]
    assert sizes == sorted(sizes) and sizes[0] < 2 < 20 < sizes[-1]


def test_activation_maps_follow_the_class_and_the_opacity(page):
    overlays = page.locator("#cams .overlay")
    expect(overlays).to_have_count(4)
    before = [image.get_attribute("src") for image in overlays.all()]
    caption = page.locator("#cams figcaption").first
    other = "Hairline" if "Hairline" not in caption.inner_text() else "Oblique"
    page.locator("#cam-label input").click()
    page.get_by_role("option", name=other).click()
    expect(caption).to_contain_text(other)
    after = [image.get_attribute("src") for image in overlays.all()]
    assert all(old != new for old, new in zip(before, after, strict=True))
    expect(page.locator("#cams")).to_contain_text(f"Orange areas support {other}")
    page.locator("#cam-opacity input[type=number]").fill("20")
    expect(overlays.first).to_have_css("opacity", "0.2")


def test_heatmap_of_the_detector_can_be_chosen_and_covers_the_image(page):
    page.locator("#cam-label input").click()
    page.get_by_role("option", name="Where the detector looks").click()
    overlay = page.locator("#cams .overlay")
    expect(overlay).to_have_count(1)
    expect(page.locator("#cams figcaption")).to_contain_text("Where the detector looks")
    assert overlay.bounding_box() == page.locator("#cams .layers img").first.bounding_box()


def test_several_images_can_be_analyzed_in_turn(page, tmp_path):
    images = {label: synthetic_radiograph(label, seed=1) for label in ("Hairline", "Oblique")}
    for label, image in images.items():
        image.save(tmp_path / f"{label}.png")
    upload(page, *(tmp_path / f"{label}.png" for label in images))
    expect_predictions(page, images["Hairline"])
    page.locator("#image-select input").click()
    page.get_by_role("option", name="2. Oblique.png").click()
    expect_predictions(page, images["Oblique"])


def test_pasted_image_is_classified(page):
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
    expect_predictions(page, image)


def test_selected_example_is_classified(page):
    page.get_by_text("Hairline (drawing)").click()
    expect_predictions(page, synthetic_radiograph("Hairline"))


@pytest.mark.parametrize("name", ["text.png", "bomb.png", "cmyk.jpg", "report.dcm"])
def test_bad_file_shows_its_error_and_the_next_image_is_classified(page, image_path, tmp_path, name):
    data, pattern = BAD_FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    upload(page, path)
    expect(page.locator("#message")).to_contain_text(re.compile(pattern))
    assert "Traceback" not in page.inner_text("body")
    expect(page.locator("#predictions .card")).to_have_count(0)
    upload(page, image_path)
    expect(page.locator("#predictions .card")).to_have_count(4)
    expect(page.locator("#message .message")).to_have_count(0)


def test_photograph_is_rejected_until_classified_anyway(page, tmp_path):
    y, x = np.mgrid[0:1:200j, 0:1:300j]
    path = tmp_path / "sunset.jpg"
    Image.fromarray(np.uint8(255 * np.dstack([x, y, 1 - x]))).save(path)
    upload(page, path)
    expect(page.locator("#message")).to_contain_text(
        "This does not look like a bone X-ray. It is a colour image; X-rays are greyscale."
    )
    expect(page.locator("#predictions .card")).to_have_count(0)
    page.get_by_role("button", name="Classify anyway").click()
    expect(page.locator("#predictions .card")).to_have_count(4)
    expect(page.locator("#message")).to_contain_text("This does not look like a bone X-ray")


def test_without_an_image_the_page_shows_a_hint(page):
    clear(page.locator("#single-xray"))
    expect(page.locator("#message")).to_contain_text("Upload or paste an X-ray")
    page.get_by_role("button", name="Classify", exact=True).click()
    expect(page.locator("#message")).to_contain_text("Upload or paste an X-ray")


@pytest.mark.slow
def test_visitor_whose_result_and_upload_expired_is_told_and_can_continue(browser, image_path, tmp_path):
    one_session = "from fracture_lib.webui import launch; launch.MAX_SESSIONS = 1; launch.main()"
    with (
        running_app(tmp_path / "log.txt", command=["-c", one_session], GRADIO_TEMP_DIR=str(tmp_path)) as url,
        browser.new_page() as page,
        browser.new_page() as other,
    ):
        page.goto(url)
        expect_predictions(page, synthetic_radiograph("Spiral"))
        upload(page, image_path)
        expect(page.locator("#predictions .card").first).to_be_visible()
        other.goto(url)
        expect_predictions(other, synthetic_radiograph("Spiral"))
        page.get_by_label("ResNet50 in TensorFlow", exact=True).first.check()
        expect(page.locator("#message")).to_contain_text("This result has expired")
        expect(page.locator("#predictions .card")).to_have_count(4)
        [uploaded] = tmp_path.rglob(image_path.name)
        uploaded.unlink()  # as the page does after fifteen minutes
        page.get_by_role("button", name="Classify", exact=True).click()
        expect(page.locator("#message")).to_contain_text("Your upload has expired. Please upload it again.")
        expect(page.locator("#predictions .card")).to_have_count(0)
        upload(page, image_path)
        expect(page.locator("#predictions .card")).to_have_count(1)
        expect(page.locator("#message .message")).to_have_count(0)


@pytest.mark.slow
def test_page_with_misconfigured_model_shows_the_others_on_every_tab(browser, tmp_path):
    with (
        running_app(tmp_path / "log.txt", FRACTURE_HUB_RESNET50="no revision") as url,
        browser.new_page() as page,
    ):
        page.goto(url)
        failed = page.locator("#predictions .card .error")
        expect(failed).to_have_count(2)
        expect(failed.first).to_contain_text("FRACTURE_HUB_RESNET50")
        names = ("pytorch-cnn", "tensorflow-cnn")
        expect_summary(page, synthetic_radiograph("Spiral"), names)
        expect(page.locator("#predictions .card:has(ol)")).to_have_count(2)
        expect(page.locator("#message")).not_to_contain_text("Loading")
        page.get_by_role("tab", name="Models").click()
        expect(page.locator("#model-errors .error")).to_have_count(2)
        expect(page.locator("#models table.sortable").first.locator("tbody tr")).to_have_count(2)
        expect(page.locator("#models .js-plotly-plot")).to_have_count(5)


# Batch

HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{constructor}} {% raw %}"


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
    assert page.locator("#batch-table tbody td").first.inner_text() == name
    assert page.locator("#batch-table img").count() == 0


def test_batch_with_bad_image_ends_with_a_csv_file_and_a_report(page, image_path, tmp_path, browser):
    page.get_by_role("tab", name="Batch").click()
    bad, second = tmp_path / "bad.png", tmp_path / "second.png"
    bad.write_bytes(b"not an image")
    synthetic_radiograph("Greenstick").save(second)
    upload(page, image_path, bad, second, tab="#batch")
    page.get_by_role("button", name="Classify all").click()
    expect(page.locator("#batch-message")).to_contain_text("3 images: 2 answered, 1 unreadable.")
    rows = page.locator("#batch-table tbody tr")
    expect(rows).to_have_count(3)
    assert "unreadable" in rows.nth(1).inner_text() and "nsupported file" in rows.nth(1).inner_text()
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
    assert report.locator("article .overlay").count() == 10  # four models and the detector
    pages = re.findall(rb"/Type\s*/Page\b", report.pdf(prefer_css_page_size=True))
    assert len(pages) == 3, "an overview and one page per image"
    report.close()


# Models


def test_models_tab_shows_measurements_and_hides_what_the_ensemble_lacks(visit):
    page = visit()
    page.get_by_role("tab", name="Models").click()
    tab = page.locator("#models")
    expect(tab.locator(".js-plotly-plot")).to_have_count(5)
    expect(tab.locator("table.sortable").first).to_contain_text("17.18 %")
    report = EvaluationReport.read(fracture_lib.load_model("pytorch-cnn").source.folder)
    expect(tab.locator("#class-metrics")).to_contain_text(f"{report.per_class[0].recall:.3f}")
    tab.get_by_label("Ensemble of all three", exact=True).check()
    expect(tab.locator(".js-plotly-plot")).to_have_count(4)  # the ensemble is not trained
    expect(tab.get_by_text("Training curves")).to_be_hidden()
    tab.get_by_text("Model card", exact=True).click()
    expect(tab).to_contain_text("It has no model card of its own")
    tab.get_by_label("ResNet50 in TensorFlow", exact=True).check()
    expect(tab.locator(".js-plotly-plot")).to_have_count(5)
    assert page.foreign_requests == []


# Every tab


def test_keyboard_alone_classifies_an_example(page):
    clear(page.locator("#single-xray"))
    expect(page.locator("#predictions .card")).to_have_count(0)
    for _ in range(40):
        page.keyboard.press("Tab")
        if "Hairline (drawing)" in page.evaluate("document.activeElement.innerText || ''"):
            break
    page.keyboard.press("Enter")
    expect_predictions(page, synthetic_radiograph("Hairline"))


def open_tabs(page: Page) -> Iterator[str]:
    """Open one tab after the other; wait until its plots are drawn."""
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        if tab == "Models":
            expect(page.locator(".js-plotly-plot")).to_have_count(5)
        yield tab


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_serious_violation(visit, dark):
    page = visit(dark=dark)
    for tab in open_tabs(page):
        # Gradio's own button for adding files contains another control.
        results = Axe().run(page, context={"exclude": [[".upload-box .icon-button"]]})
        serious = [
            (v["id"], v["help"], [node["html"][:200] for node in v["nodes"]])
            for v in results.response["violations"]
            if v["impact"] in ("serious", "critical")
        ]
        assert serious == [], tab


def test_phone_needs_no_horizontal_scrolling(visit):
    page = visit(**PHONE)
    for tab in open_tabs(page):
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], tab


def test_batch_table_on_a_phone_has_no_tall_rows(visit, image_path):
    page = visit(**PHONE)
    page.get_by_role("tab", name="Batch").click()
    upload(page, image_path, tab="#batch")
    page.get_by_role("button", name="Classify all").click()
    expect(page.locator("#batch-message")).to_contain_text("1 image: 1 answered.")
    height = page.locator("#batch-table tbody tr").first.evaluate("e => e.offsetHeight")
    assert height < 110, "the summary needs a wider column"


def test_screenshots_for_the_readme(visit, request, tmp_path):
    """`python -m pytest tests/webui/test_page.py -k screenshots --screenshots docs` writes them."""
    folder = Path(request.config.getoption("--screenshots") or tmp_path)
    page = visit(height=1000)
    page.screenshot(path=folder / "single-xray.png", full_page=True)
    page = visit("?model=resnet50", dark=True, **PHONE)
    page.screenshot(path=folder / "phone-dark.png")
    assert all(path.stat().st_size > 20_000 for path in folder.glob("*.png"))
