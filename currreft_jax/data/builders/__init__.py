"""From published data sets to rows, and from open rows to the rows of the earlier stages.

Each format has a converter, a generator of rows and of what negatives are made of; everything after it is shared:
counting what was dropped, checking golds under their own reward, splitting by image, generating yes/no rows and rows
with options, writing.
"""

from currreft_jax.data.builders.formats import FORMATS
from currreft_jax.data.builders.program import add_arguments, run

__all__ = ["FORMATS", "add_arguments", "run"]
