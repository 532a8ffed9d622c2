from collections.abc import Iterator

import pytest

from currreft_jax.config import Maths
from currreft_jax.rewards import MathsPool


@pytest.fixture(scope="package")
def pool() -> Iterator[MathsPool]:
    with MathsPool(Maths(workers=1)) as pool:
        yield pool
