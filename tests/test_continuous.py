"""Continuous batching samples the tokens of fixed batches, whatever enters when, and compiles nothing meanwhile."""

# ruff: noqa: F811 fixtures are imported

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import currreft_jax as cr
from currreft_jax.data.packing import BudgetError
from currreft_jax.runtime.multihost import to_devices
from currreft_jax.runtime.timing import CompilationCounter
from currreft_jax.sampling import continuous
from currreft_jax.sampling.continuous import SampledGroup, sample_stream, slot_layout, warm_up_stream
from currreft_jax.sampling.slots import slot_programs
from tests.marks import quick
from tests.test_rollout import EXACT, G, rollout, world  # noqa: F401

SEEDS = {"seed": 3, "stage": 1, "step": 7}
ROWS = (0, 1, 3, 4, 6, 7)  # prompts of `world` with at most one image


def groups_of(rollout, rows=ROWS):
    """Returns the completions of a fixed batch."""
    tokens, logprobs, lengths = (np.asarray(x) for x in (rollout.tokens, rollout.logprobs, rollout.lengths))
    return [
        SampledGroup(
            number,
            [tokens[row, g, : lengths[row, g]] for g in range(G)],
            [logprobs[row, g, : lengths[row, g]] for g in range(G)],
            np.asarray(rollout.finished)[row].tolist(),
        )
        for number, row in enumerate(rows)
    ]


@pytest.fixture(scope="module")
def expected(rollout):
    groups = groups_of(rollout)
    lengths = [len(tokens) for group in groups for tokens in group.tokens]
    assert min(lengths) < 8 and not all(found for group in groups for found in group.finished)  # some never end
    return groups


@pytest.fixture(scope="module")
def prompts(world):
    return [world[3][row] for row in ROWS]


def assert_same_groups(groups, expected):
    assert [group.number for group in groups] == [group.number for group in expected]
    for group, other in zip(groups, expected, strict=True):
        assert group.finished == other.finished
        for name in ("tokens", "logprobs"):
            for x, y in zip(getattr(group, name), getattr(other, name), strict=True):
                assert x.shape == y.shape
                np.testing.assert_allclose(x, y, atol=1e-5 if name == "logprobs" else 0, rtol=0)


@pytest.fixture(scope="module")
def layout(world):
    """Three slots; a prompt enters at a time."""
    found = slot_layout(world[0], EXACT, 3, 96)
    assert (found.num_slots, found.num_entering, found.length) == (3, 1, 96)
    return found


@pytest.fixture(scope="module")
def stream(world, prompts, layout):
    """Streams prompts after the warm-up, and asserts that nothing compiles."""
    model, parameters, processor, _ = world
    arguments = {"layout": layout, "weights": cr.decode_params(model, parameters, EXACT)}
    warm_up_stream(model, parameters, processor, [[prompt] for prompt in prompts[:2]], EXACT, **arguments)

    def run(source):
        counter = CompilationCounter()
        yield from sample_stream(model, parameters, processor, source, EXACT, **arguments, **SEEDS)
        counter.close()
        assert counter.take() == 0

    return run


def flat(parts):
    return [group for part in parts for group in part]


def test_a_stream_samples_the_tokens_of_fixed_batches_and_compiles_nothing(prompts, expected, stream):
    groups = flat(stream(prompts))
    numbers = [group.number for group in groups]
    assert numbers != sorted(numbers)  # short ones leave before long ones that entered earlier
    assert_same_groups(sorted(groups, key=lambda group: group.number), expected)


def test_fewer_prompts_than_slots_and_none_at_all(prompts, expected, stream):
    assert flat(stream(())) == []
    groups = flat(stream(prompts[:2]))
    assert_same_groups(sorted(groups, key=lambda group: group.number), expected[:2])


def test_prompts_may_arrive_while_others_are_decoded(prompts, expected, stream):
    """None lets the completions in the slots go on; what has ended is out before an idle batch asks for more."""
    groups = list[SampledGroup]()

    def arriving():
        yield from (None, prompts[0], prompts[1], None, prompts[2], None, None, None)
        while len(groups) < 3:
            yield None
        yield prompts[3]

    for part in stream(arriving()):
        groups += part
    assert_same_groups(sorted(groups, key=lambda group: group.number), expected[:4])
    assert groups[-1].number == 3


def test_an_entering_prompt_leaves_nothing_of_the_last_one(world, prompts, layout):
    """Not even what is not finite, which masks would not keep out of sums."""
    model, parameters, processor, _ = world
    reader = continuous._PromptReader(model, parameters, processor, EXACT, layout, None, (3, 1, 7))
    entering = reader.prefill(prompts[:1])
    batch = continuous._SlotBatch(reader, entering)

    def spoil(x):
        return jnp.full_like(x, jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 77)

    spoilt = jax.tree.map(spoil, (batch._prompts, batch._state._replace(place=None)))
    state = spoilt[1]._replace(place=batch._state.place, done=jnp.ones_like(batch._state.done))
    slots = to_devices(np.array([2], np.int32), model.mesh)
    filled = slot_programs(reader.spec).insert(spoilt[0], state, entering.prompts, entering.state, slots)
    for x in jax.tree.leaves((filled[0], filled[1]._replace(place=None))):
        assert np.isfinite(np.asarray(x[2])).all() and x.shape[0] == 3
    assert not np.asarray(filled[1].done[2]).any() and np.asarray(filled[1].slot)[2] == 1
    for layer in filled[1].caches:
        assert not np.asarray(layer.keys[2]).any() and not np.asarray(layer.values[2]).any()
    for layer, read in zip(filled[0].caches, entering.prompts.caches, strict=True):
        np.testing.assert_array_equal(layer.keys[2], read.keys[0])
        np.testing.assert_array_equal(layer.values[2], read.values[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "changes"),
    [
        ((2, 1, 1), {}),
        ((1, 4, 1), {"mesh": (2, 2)}),
        ((1, 1, 1), {"segment": 24, "prompt_lengths": (64, 96)}),
    ],
    ids=str,
)
def test_shards_segments_and_buckets_change_no_token(checkpoint, world, rollout, mesh, changes):
    devices = jax.devices()[: int(np.prod(mesh))]
    model, parameters = cr.load_model(checkpoint, mesh=cr.make_mesh(*mesh, devices=devices))
    settings = replace(EXACT, **changes)
    layout = slot_layout(model, settings, 4, 96)
    parts = sample_stream(model, parameters, *world[2:], settings, layout=layout, **SEEDS)
    assert_same_groups(sorted(flat(parts), key=lambda group: group.number), groups_of(rollout, range(8)))


@pytest.mark.parametrize("slots", quick([1, 9, 64], 3))
def test_slots_fill_whole_prefills(world, slots):
    layout = slot_layout(world[0], EXACT, slots, 10)
    assert layout.num_slots >= slots and layout.num_slots % layout.num_entering == 0
    assert layout.num_entering == max(1, slots // 8) and layout.length == 96


def test_a_prompt_longer_than_a_slot_is_refused(world, layout):
    model, parameters, processor, prompts = world
    short = replace(layout, length=32)
    with pytest.raises(BudgetError, match=r"0: \d+ tokens, but a slot holds 32"):
        list(sample_stream(model, parameters, processor, prompts, EXACT, layout=short))
