"""Converts published data sets to rows, and generates rows of the earlier stages from open rows.

Each format has a converter, which yields rows and the annotations that negatives are generated from. The remaining
steps are shared: counting dropped records, checking gold answers with the row's own reward, splitting by image,
generating yes/no rows and rows with options, and writing.
"""

from currreft_jax.data.builders.cli import add_arguments, run
from currreft_jax.data.builders.formats import FORMATS

__all__ = ["FORMATS", "add_arguments", "run"]
