"""Train models: recipes, augmentation, the training loop and its callbacks."""
