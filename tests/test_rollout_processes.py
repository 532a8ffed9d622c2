"""Two processes of four devices each draw what one process draws, though their mesh and their rows are others."""

import jax
import numpy as np

import currreft_jax as cr
from currreft_jax.config import CacheType, Precision, Sampling
from currreft_jax.structs import Prompt
from tests import tiny
from tests.test_processes import START, together

PROGRAM = (
    START
    + """
import numpy as np
from jax.experimental import multihost_utils
import currreft_jax as cr
from tests.test_rollout_processes import prompts_of, settings

model, parameters = cr.load_model(source, mesh=cr.make_mesh(1, 8, 1))
processor, prompts = prompts_of(source)
mine = prompts[4 * process : 4 * process + 4]
rollout = cr.sample(model, parameters, processor, mine, settings(), mesh=(4, 2), seed=5)
gathered = multihost_utils.process_allgather((rollout.tokens, rollout.lengths), tiled=True)
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


def test_two_processes_draw_what_one_does(checkpoint, tmp_path):
    model, parameters = cr.load_model(checkpoint)
    processor, prompts = prompts_of(checkpoint)
    alone = cr.sample(model, parameters, processor, prompts, settings(), seed=5)
    found = together(checkpoint, tmp_path / "out", PROGRAM)
    expected = np.concatenate([alone.tokens, np.asarray(alone.lengths)[..., None]], axis=2)
    np.testing.assert_array_equal(found, expected)
    assert jax.process_count() == 1
