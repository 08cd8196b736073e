"""Flower, with our arguments and columns."""
