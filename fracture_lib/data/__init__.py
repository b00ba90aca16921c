"""Labelled images: find, read, group and split them."""
