"""The whole way, on loopback: notebook, push, card, pull, page, an answer in a browser."""

from pathlib import Path

import papermill
from conftest import running_app
from huggingface_hub import ModelCard
from playwright.sync_api import expect, sync_playwright
from test_page import FLAGS

from fracture_lib.__main__ import main
from fracture_lib.drawing import draw_film

ROOT = Path(__file__).parent.parent


def test_what_the_notebook_trains_and_pushes_answers_on_the_page(hub, film_folder, tmp_path):
    dataset, repo = "someone/journey-films", "someone/journey"
    assert main(["dataset", "push", "--data", str(film_folder), "--repo", dataset, "--folds", "4"]) == 0
    choices = {"DATA": dataset, "SPLIT": "train", "EPOCHS": 1, "FOLDS": 3, "HELD_OUT": 1}
    executed = papermill.execute_notebook(
        ROOT / "train_colab.ipynb",
        tmp_path / "executed.ipynb",
        {**choices, "OUT": str(tmp_path / "trained"), "REPO": repo, "INSTALL": False},
        cwd=ROOT,
        kernel_name="python3",
        progress_bar=False,
    )
    shown = [
        data for cell in executed.cells for out in cell.get("outputs", ()) for data in out.get("data", ())
    ]
    assert shown.count("application/vnd.plotly.v1+json") == 4, "the live curve and three figures"
    assert "text/markdown" in shown

    repo = f"{repo}-pytorch-cnn"
    card = ModelCard.load(repo)
    assert card.data.datasets == [dataset] and card.data.eval_results[0].metric_value >= 0
    sha = hub.repositories["models", repo].refs["main"]
    pin = {"FRACTURE_HUB_PYTORCH_CNN": f"{repo}@{sha}"}
    with running_app(tmp_path / "app.txt", **pin) as url, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = chromium.new_page()
        page.goto(f"{url}/?model=pytorch-cnn")
        card = page.locator("#answers .card[data-model=pytorch-cnn]")
        expect(card).to_contain_text(f"Hugging Face Hub, {repo} at {sha[:12]}", timeout=90_000)
        draw_film("Oblique").save(tmp_path / "film.png")
        page.locator("#one-film").get_by_label("Clear").first.click()
        page.locator("#one-film input[type=file]").first.set_input_files(tmp_path / "film.png")
        expect(page.locator("#one-film")).to_contain_text("film.png")
        expect(card.locator(".bars li")).to_have_count(3)
        chromium.close()
