"""`fracture cards`: the cards of the bundle and the README's results."""

from pathlib import Path

from fracture_lib.cli import main
from fracture_lib.errors import InvalidData
from fracture_lib.hub import BUNDLE
from fracture_lib.registry import DETECTOR, MODELS


def test_cards_writes_the_results_and_a_card_per_bundled_model(monkeypatch, capsys):
    monkeypatch.setattr("fracture_lib.publishing.cards.write_results", lambda: Path("README.md"))
    monkeypatch.setattr("fracture_lib.publishing.cards.write_card", lambda folder: folder / "README.md")
    assert main(["cards"]) == 0
    paths = [Path("README.md"), *(BUNDLE / name / "README.md" for name in (*MODELS, DETECTOR))]
    assert capsys.readouterr().out.splitlines() == [f"Wrote {path}." for path in paths]


def test_cards_outside_a_checkout_writes_nothing(monkeypatch, capsys):
    def fail():
        raise InvalidData("This needs the project's source checkout.")

    monkeypatch.setattr("fracture_lib.publishing.cards.write_results", fail)
    monkeypatch.setattr("fracture_lib.publishing.cards.write_card", lambda folder: 1 / 0)
    assert main(["cards"]) == 1
    assert capsys.readouterr().err == "error: This needs the project's source checkout.\n"
