"""Evaluation: scores of files of completions."""
