"""Conversion between Hugging Face and native checkpoints."""
