"""Conversion between Hugging Face's checkpoints and the native ones."""
