"""What only Colab has: Google Drive and secrets."""

from pathlib import Path

__all__ = ["log_in", "mount"]

DRIVE = "/content/drive"


def mount(*folders: str | Path | None) -> None:
    """Mount Google Drive if any of `folders` is in it; do nothing outside Colab."""
    if any(str(folder).startswith(f"{DRIVE}/") for folder in folders):
        from google.colab import drive

        drive.mount(DRIVE)


def log_in() -> None:
    """Log in to the Hub with a form, unless Colab's secret HF_TOKEN or an earlier login has a token."""
    from huggingface_hub import get_token, notebook_login

    if not get_token():
        notebook_login()
