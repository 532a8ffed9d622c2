"""The examples in docstrings."""

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["training.losses"])
def test_examples_in_docstrings_run(module):
    failed, attempted = doctest.testmod(importlib.import_module(f"currreft_jax.{module}"))
    assert attempted and not failed
