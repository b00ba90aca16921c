"""Publish on the Hugging Face Hub: model cards, models, datasets and the Space."""
