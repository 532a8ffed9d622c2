"""Two processes with four devices each sample as one process does, on another mesh and in another order of devices."""

import jax
import numpy as np
import pytest

import currreft_jax as cr
from currreft_jax.config import CacheType, Precision, Sampling
from currreft_jax.structs import Prompt
from tests import tiny
from tests.test_processes import START, run_two_processes

PROGRAM = (
    START
    + """
import numpy as np
from jax.experimental import multihost_utils
import currreft_jax as cr
from currreft_jax.runtime.multihost import local_rows
from tests.test_rollout_processes import prompts_of, settings

# The processes' devices take turns by two, so that the shards of neither are consecutive.
turns = [jax.devices()[i] for i in (0, 1, 4, 5, 2, 3, 6, 7)]
model, parameters = cr.load_model(source, mesh=cr.make_mesh(1, 8, 1, devices=turns))
processor, prompts = prompts_of(source)
own = prompts[4 * process : 4 * process + 4]
rollout = cr.sample(model, parameters, processor, own, settings(), mesh=(4, 2), seed=5)
own_rows = local_rows(rollout.tokens), local_rows(rollout.lengths)
gathered = multihost_utils.process_allgather(own_rows, tiled=True)
if process == 0:
    tokens, lengths = map(np.asarray, gathered)
    print(json.dumps(np.concatenate([tokens, lengths[..., None]], axis=2).tolist()))
"""
)


def settings() -> Sampling:
    return Sampling(
        group_size=2,
        max_new_tokens=12,
        segment=6,
        precision=Precision.FLOAT32,
        cache=CacheType.FLOAT32,
        prompt_lengths=(64, 96),
    )


def prompts_of(source) -> tuple[object, list[Prompt]]:
    processor = cr.load_processor(source, max_pixels=6_000)
    processor.eos_token_ids = tuple(range(0, 256, 24))
    prompts = [
        processor.prompt(tiny.user("?" * i, i % 2), [tiny.picture(60 + i, 90, i)] * (i % 2), key=i) for i in range(8)
    ]
    return processor, prompts


@pytest.mark.slow
def test_two_processes_sample_as_one(checkpoint, tmp_path):
    model, parameters = cr.load_model(checkpoint)
    processor, prompts = prompts_of(checkpoint)
    expected_rollout = cr.sample(model, parameters, processor, prompts, settings(), seed=5)
    found = run_two_processes(checkpoint, tmp_path / "out", PROGRAM)
    expected = np.concatenate([expected_rollout.tokens, np.asarray(expected_rollout.lengths)[..., None]], axis=2)
    np.testing.assert_array_equal(found, expected)
    assert jax.process_count() == 1
