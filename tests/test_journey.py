"""The whole way, on loopback: notebook, push, card, pull, page, a prediction in a browser."""

from pathlib import Path

import papermill
import pytest
from huggingface_hub import ModelCard
from playwright.sync_api import expect

from fracture_lib.cli import main
from fracture_lib.data.synthetic import synthetic_radiograph
from tests.helpers import browser as chromium
from tests.helpers.app_runner import running_app

ROOT = Path(__file__).parent.parent


@pytest.mark.browser
@pytest.mark.slow
def test_model_trained_and_pushed_by_the_notebook_predicts_on_the_page(hub, dataset_folder, tmp_path):
    dataset, repo = "someone/journey-images", "someone/journey"
    push = ["push", "dataset", "--data", str(dataset_folder), "--repo", dataset, "--n-folds", "4"]
    assert main(push) == 0
    parameters = {
        "QUICK": False,
        "DATA": f"hf-hub:{dataset}",
        "SPLIT": "train",
        "OUT": str(tmp_path / "trained"),
        "EPOCHS": 1,
        "N_FOLDS": 3,
        "N_MEASURED_FOLDS": 1,
        "REPO": repo,
        "INSTALL": False,
    }
    executed = papermill.execute_notebook(
        ROOT / "train_colab.ipynb",
        tmp_path / "executed.ipynb",
        parameters,
        cwd=ROOT,
        kernel_name="python3",
        progress_bar=False,
    )
    outputs = [output for cell in executed.cells for output in cell.get("outputs", ())]
    shown = [mime_type for output in outputs for mime_type in output.get("data", ())]
    assert shown.count("application/vnd.plotly.v1+json") == 4, "the live curve and three plots"
    assert "text/markdown" in shown

    repo = f"{repo}-pytorch-cnn"
    card = ModelCard.load(repo)
    assert card.data.datasets == [dataset] and card.data.eval_results[0].metric_value >= 0
    sha = hub.repositories["models", repo].refs["main"]
    pinned = {"FRACTURE_HUB_PYTORCH_CNN": f"{repo}@{sha}"}
    image = tmp_path / "xray.png"
    synthetic_radiograph("Oblique").save(image)
    with running_app(tmp_path / "app.txt", **pinned) as url, chromium.launch() as browser:
        page = browser.new_page()
        page.goto(f"{url}/?model=pytorch-cnn")
        page.locator("#single-xray input[type=file]").first.set_input_files(image)
        matrix = page.locator("#matrix")
        expect(matrix).to_contain_text(f"Hugging Face Hub, {repo} at {sha[:12]}", timeout=90_000)
        expect(matrix.locator("tbody tr")).to_have_count(5)
