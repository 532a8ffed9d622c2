"""The prompts of the gauge task: what follows the question."""

from dataclasses import replace

from currreft_jax.config import Kind, Task
from currreft_jax.data.prompts import PAPER, WORLD

SUFFIXES = {(Kind.OPEN, Task.OTHER): "give a number."}
GAUGE = replace(PAPER, suffixes=SUFFIXES)  # asks for thoughts in <think>, then for the answer in <answer>
TINY = replace(WORLD, suffixes=SUFFIXES)  # short: the embedded model knows few words, and thinks without being asked
