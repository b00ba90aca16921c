"""What train_colab.ipynb is made of: plans of a run, what it shows, and what only Colab has."""
