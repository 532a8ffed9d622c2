"""Measurements of a model on rows that it is not trained on."""
