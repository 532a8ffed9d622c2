"""Command-line tools that are run from the repository: `python -m tools.NAME`."""
