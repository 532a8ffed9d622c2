"""Continuous batching samples the tokens of fixed batches, whatever enters when, and compiles nothing meanwhile."""

# ruff: noqa: F811 fixtures are imported

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import currreft_jax as cr
from currreft_jax.data.packing import BudgetError
from currreft_jax.models.cache import init_cache, ring_mask, update_cache
from currreft_jax.runtime.multihost import to_devices
from currreft_jax.runtime.timing import CompilationCounter
from currreft_jax.sampling import continuous
from currreft_jax.sampling.continuous import SampledGroup, sample_stream, slot_layout, warm_up_stream
from currreft_jax.sampling.slots import resize_slots, slot_programs
from currreft_jax.sampling.state import DecodeState
from currreft_jax.structs import TokenSampling
from tests.marks import quick
from tests.test_rollout import EXACT, G, rollout, world  # noqa: F401

SEEDS = {"seed": 3, "stage": 1, "step": 7}
STREAMED = replace(EXACT, ladder=(0.5,))
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
    found = slot_layout(world[0], STREAMED, 3, 96)
    assert (found.num_slots, found.num_entering, found.length) == (3, 1, 96)
    return found


@pytest.fixture(scope="module")
def stream(world, prompts, layout):
    """Streams prompts after the warm-up, and asserts that nothing compiles."""
    model, parameters, processor, _ = world
    arguments = {"layout": layout, "weights": cr.decode_params(model, parameters, EXACT)}
    entries = [[replace(prompt, content=number)] for number, prompt in enumerate(prompts[:2])]
    warm_up_stream(model, parameters, processor, entries, STREAMED, **arguments)

    def run(source, **more):
        counter = CompilationCounter()
        yield from sample_stream(model, parameters, processor, source, STREAMED, **arguments, **SEEDS, **more)
        counter.close()
        assert counter.take() == 0

    return run


def flat(parts):
    return [group for part in parts for group in part]


def test_a_stream_samples_the_tokens_of_fixed_batches_and_compiles_nothing(prompts, expected, stream, monkeypatch):
    """Meanwhile its caches grow and are cut, and at its end it has fewer slots."""
    capacities, sizes = list[int](), list[int]()
    resize, shrink = continuous._SlotBatch.resize, continuous._SlotBatch.shrink

    def recorded_resize(batch, capacity):
        capacities.append(capacity - batch.capacity)
        resize(batch, capacity)

    monkeypatch.setattr(continuous._SlotBatch, "resize", recorded_resize)
    monkeypatch.setattr(
        continuous._SlotBatch, "shrink", lambda batch: sizes.append(batch.smaller_size) or shrink(batch)
    )
    groups = flat(stream(prompts[:4]))
    assert_same_groups(sorted(groups, key=lambda group: group.number), expected[:4])
    groups = flat(stream(prompts))
    print(capacities, sizes)
    assert max(capacities) > 0 > min(capacities) and sizes == [2, 2]
    numbers = [group.number for group in groups]
    assert numbers != sorted(numbers)  # short ones leave before long ones that entered earlier
    assert_same_groups(sorted(groups, key=lambda group: group.number), expected)


@pytest.fixture
def prefilled(monkeypatch):
    """Numbers of the prompts that are prefilled, by call."""
    numbers, prefill = [], continuous._PromptReader.prefill

    def counted(reader, waiting, **options):
        numbers.append([number for number, _ in waiting])
        return prefill(reader, waiting, **options)

    monkeypatch.setattr(continuous._PromptReader, "prefill", counted)
    return numbers


def test_prompts_of_equal_content_are_read_once_while_a_slot_holds_them(prompts, stream, prefilled):
    """In three slots; their completions are those of prompts that are read by themselves."""
    contents = [0, 0, 0, 0, 1, 1, 1, 2]  # prompts 0, 1 and 2, with keys and numbers of their own
    asked = [
        replace(prompts[content], key=number // 2, first_sample=G * (number % 2), content=content, name=str(number))
        for number, content in enumerate(contents)
    ]
    one_by_one = flat(stream([replace(prompt, content=None) for prompt in asked]))
    assert prefilled == [[number] for number in range(8)]
    prefilled.clear()
    groups = flat(stream(asked))
    assert prefilled == [[0], [4], [7]]
    assert_same_groups(*(sorted(found, key=lambda group: group.number) for found in (groups, one_by_one)))


def test_a_content_that_no_slot_holds_any_more_is_read_again(prompts, stream, prefilled):
    contents = [0, 1, 2, 3, 0]
    asked = [replace(prompts[content], content=content) for content in contents]
    assert len(flat(stream(asked))) == 5 and prefilled == [[0], [1], [2], [3], [4]]


def test_fewer_prompts_than_slots_and_none_at_all(prompts, expected, stream):
    assert flat(stream(())) == []
    groups = flat(stream(prompts[:2]))
    assert_same_groups(sorted(groups, key=lambda group: group.number), expected[:2])


def test_prompts_may_arrive_while_others_are_decoded(prompts, expected, stream):
    """None lets the completions in the slots go on; what has ended is out before an idle batch asks for more."""
    groups = list[SampledGroup]()

    def arriving():
        yield from (None, prompts[0], prompts[1], None, prompts[2], None, None, None)
        for _ in range(99):
            if len(groups) < 3:
                yield None
        yield prompts[3]

    for part in stream(arriving()):
        groups += part
    assert_same_groups(sorted(groups, key=lambda group: group.number), expected[:4])
    assert groups[-1].number == 3


def test_while_slots_are_free_prompts_are_asked_for_four_times_a_segment(prompts, stream):
    lengths = []

    def arriving():
        yield prompts[0]
        while len(lengths) < 3:
            yield None

    def keep(sampled):
        lengths.append(sampled.tokens.shape[1])
        return True

    flat(stream(arriving(), on_tokens=keep))
    assert lengths[:3] == [1 + EXACT.segment // 4, EXACT.segment // 4, EXACT.segment // 4]


def test_an_entering_prompt_leaves_nothing_of_the_last_one(world, prompts, layout):
    """Not even what is not finite, which masks would not keep out of sums."""
    model, parameters, processor, _ = world
    reader = continuous._PromptReader(model, parameters, processor, EXACT, layout, None, (3, 1, 7))
    entering = reader.prefill([continuous._Waiting(0, prompts[0])])
    batch = continuous._SlotBatch(reader, entering)
    prefilled, started = entering.prefilled

    def spoil(x):
        return jnp.full_like(x, jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 77)

    spoilt = jax.tree.map(spoil, (batch._prompts, batch._state._replace(place=None)))
    state = spoilt[1]._replace(place=batch._state.place, done=jnp.ones_like(batch._state.done))
    slots = to_devices(np.array([2], np.int32), model.mesh)
    filled = slot_programs(reader.spec).insert(spoilt[0], state, prefilled, started, slots)
    for x in jax.tree.leaves((filled[0], filled[1]._replace(place=None))):
        assert np.isfinite(np.asarray(x[2])).all() and x.shape[0] == 3
    assert not np.asarray(filled[1].done[2]).any() and np.asarray(filled[1].slot)[2] == 1
    for layer in filled[1].caches:
        assert not np.asarray(layer.keys[2]).any() and not np.asarray(layer.values[2]).any()
    for layer, read in zip(filled[0].caches, prefilled.caches, strict=True):
        np.testing.assert_array_equal(layer.keys[2], read.keys[0])
        np.testing.assert_array_equal(layer.values[2], read.values[0])


def test_a_ring_that_grows_and_shrinks_keeps_its_tokens_in_their_order():
    """The keys and values are the numbers of the tokens, of which a completion of five has the last ones."""
    ring = init_cache(jnp.zeros((1, 1, 1, 4, 2)), jnp.zeros((1, 1, 1, 4, 2)), jnp.dtype("float32"))
    place = 0

    def write(ring, last):
        nonlocal place
        while place < last:
            token = jnp.full((1, 1, 1, 2), float(place))
            ring = update_cache(ring, token, token, jnp.int32(place))
            place += 1
        return ring

    def seen(ring, place, token_index):
        mask = ring_mask(jnp.int32(place), jnp.array([token_index]), ring.values.shape[3])[0]
        assert (ring.keys[0, 0, 0, 0] == ring.values[0, 0, 0, :, 0]).all()
        return sorted(ring.values[0, 0, 0, mask, 0].tolist())

    ring = write(ring, 10)  # more than twice round
    assert seen(ring, 9, 3) == [6, 7, 8, 9] and seen(ring, 9, 1) == [8, 9] and seen(ring, 9, -1) == []
    free = dict.fromkeys(DecodeState._fields)
    grown = resize_slots(DecodeState(**{**free, "caches": (ring,), "place": jnp.int32(place)}), 8)
    (ring,), place = grown.caches, int(grown.place)
    for number in range(10, 13):
        token = jnp.full((1, 1, 1, 2), float(number))
        ring = update_cache(ring, token, token, jnp.int32(place))
        assert seen(ring, place, number - 6) == list(range(6, number + 1))
        assert seen(ring, place, 1) == [number - 1, number]
        place += 1
    cut = resize_slots(DecodeState(**{**free, "caches": (ring,), "place": jnp.int32(place)}), 4)
    (ring,), place = cut.caches, int(cut.place)
    for number in range(13, 18):
        token = jnp.full((1, 1, 1, 2), float(number))
        ring = update_cache(ring, token, token, jnp.int32(place))
        assert seen(ring, place, 3) == list(range(number - 3, number + 1))
        assert seen(ring, place, 1) == [number - 1, number]
        place += 1


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
    twice = [replace(prompt, content=row) for row, prompt in enumerate(world[3]) for _ in range(2)]
    parts = sample_stream(model, parameters, world[2], twice, settings, layout=layout, **SEEDS)
    groups = sorted(flat(parts), key=lambda group: group.number)
    for first in (0, 1):
        found = [group._replace(number=row) for row, group in enumerate(groups[first::2])]
        assert_same_groups(found, groups_of(rollout, range(8)))


@pytest.mark.parametrize("slots", quick([1, 9, 64], 3))
def test_slots_fill_whole_prefills(world, slots):
    layout = slot_layout(world[0], EXACT, slots, 10)
    assert layout.num_slots >= slots and layout.num_slots % layout.num_entering == 0
    assert layout.num_entering == max(1, slots // 4) and layout.length == 96


def test_a_prompt_longer_than_a_slot_is_refused(world, layout):
    model, parameters, processor, prompts = world
    short = replace(layout, length=32)
    with pytest.raises(BudgetError, match=r"0: \d+ tokens, but a slot holds 32"):
        list(sample_stream(model, parameters, processor, prompts, EXACT, layout=short))


def test_prompts_with_settings_of_their_own_share_a_batch(world, prompts, expected, layout):
    """Those of the batch's temperature sample its tokens; a top-k of 1 is greedy."""
    model, parameters, processor, _ = world
    own = {prompt.name: TokenSampling(EXACT.temperature, 0, 1.0) for prompt in prompts}
    own[prompts[1].name], own[prompts[2].name] = TokenSampling(0.0, 0, 0.5), TokenSampling(0.7, 1, 1.0)
    sampling = {"token_sampling": lambda prompt: own[prompt.name], "ladder": (), **SEEDS}
    parts = sample_stream(model, parameters, processor, prompts, EXACT, layout=layout, **sampling)
    groups = sorted(flat(parts), key=lambda group: group.number)
    sampled = [number for number in range(len(prompts)) if number not in (1, 2)]
    assert_same_groups([groups[number] for number in sampled], [expected[number] for number in sampled])
    greedy = cr.sample(model, parameters, processor, prompts[1:3], EXACT, temperature=0.0)
    for row, group in enumerate(groups[1:3]):
        for g, tokens in enumerate(group.tokens):
            np.testing.assert_array_equal(tokens, np.asarray(greedy.tokens)[row, g, : len(tokens)])
            assert len(tokens) == greedy.lengths[row, g]


def test_tokens_are_reported_as_they_come_and_unwanted_prompts_leave(world, prompts, expected, stream):
    reported = {number: [] for number in range(len(prompts))}
    longest = max(range(len(prompts)), key=lambda number: max(map(len, expected[number].tokens)))

    def keep(sampled):
        reported[sampled.number].append(sampled)
        return sampled.number != longest

    groups = sorted(flat(stream(prompts, on_tokens=keep)), key=lambda group: group.number)
    assert_same_groups(groups, [group for group in expected if group.number != longest])
    assert len(reported[longest]) == 1
    for number, parts in reported.items():
        for g, whole in enumerate(expected[number].tokens if parts else []):
            tokens = np.concatenate([part.tokens[g] for part in parts])
            shorter = min(len(tokens), len(whole))
            np.testing.assert_array_equal(tokens[:shorter], whole[:shorter])
