"""Continuous batching: prompts whose completions have ended leave the batch, and waiting ones enter their slots.

A completion depends on its own key alone, as in `sample`, which samples the same tokens up to rounding. The host sees
the device when enough slots are free for the prompts that are to enter next, or after a segment; while the device
decodes, the host reads the next prompts, and the caller works on the last completions. Memory is that of the slots,
however many prompts there are. A prompt whose content a slot holds is copied from there, and not read again. When no
prompt waits any more, the batch shrinks as its completions end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from math import lcm
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from currreft_jax.config import Sampling
from currreft_jax.data.packing import BudgetError, prompt_keys, smallest_bucket
from currreft_jax.data.processor import Processor
from currreft_jax.models.decoder import decoding_model, decoding_weights
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.runtime.multihost import local_rows, shards_per_host, to_devices
from currreft_jax.runtime.sharding import data_shards
from currreft_jax.sampling.programs import sampler_programs
from currreft_jax.sampling.sampler import collate_prompts, processor_spec, smaller_sizes, with_changes
from currreft_jax.sampling.slots import Forks, slot_programs
from currreft_jax.sampling.state import DecodeState, PromptState, SamplerSpec
from currreft_jax.structs import Prompt, TokenSampling

_ENTERING_SHARE = 4  # of the slots, one in so many is filled at a time: small prefills waste their dispatch and matmuls
_LOOKS_FOR_ARRIVALS = 4  # of a segment, while slots are free and prompts may arrive


@dataclass(frozen=True, slots=True)
class SlotLayout:
    """The slots of a continuous batch.

    Attributes:
        num_slots: R, prompts that are decoded together, over all hosts.
        num_entering: E, prompts that are read together, over all hosts.
        length: prompt tokens that a slot holds.
        num_shards: data shards of the decoding mesh that belong to a host.
    """

    num_slots: int
    num_entering: int
    length: int
    num_shards: int

    @property
    def slots_per_shard(self) -> int:
        """Slots of a data shard."""
        return self.num_slots // (self.num_shards * jax.process_count())

    @property
    def host_slots(self) -> int:
        """Slots of a host."""
        return self.num_slots // jax.process_count()

    @property
    def host_entering(self) -> int:
        """Prompts of a host that are read together."""
        return self.num_entering // jax.process_count()

    def entering_rows(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Returns a host's rows of a prefill: its prompts dealt out to its data shards, the last one repeated."""
        filled = [*prompts, *[prompts[-1]] * (self.host_entering - len(prompts))]
        return [filled[number] for number in self.entering_order()]

    def entering_order(self) -> list[int]:
        """Returns the number of the prompt in each of a host's rows of a prefill."""
        return np.arange(self.host_entering).reshape(-1, self.num_shards).T.reshape(-1).tolist()


def slot_layout(model: Model, settings: Sampling, num_slots: int, prompt_length: int) -> SlotLayout:
    """Lays slots out over the devices.

    Args:
        model: as it is trained.
        settings: sampling settings.
        num_slots: slots over all hosts, at least; rounded up.
        prompt_length: tokens of the longest prompt.

    Raises:
        BudgetError: the prompt is longer than the largest bucket.
        ValueError: a data shard spans hosts.
    """
    mesh = decoding_model(model, settings.mesh, jnp.dtype(settings.precision.value)).mesh
    multiple = lcm(data_shards(model.mesh), data_shards(mesh))
    num_entering = multiple * max(1, num_slots // (_ENTERING_SHARE * multiple))
    return SlotLayout(
        num_slots=-(-num_slots // num_entering) * num_entering,
        num_entering=num_entering,
        length=smallest_bucket(prompt_length, settings.prompt_lengths, "sampling.prompt_lengths"),
        num_shards=shards_per_host(mesh),
    )


class SampledGroup(NamedTuple):
    """The completions of one prompt.

    Attributes:
        number: of the prompt among this host's, counted from 0.
        tokens: int32 `[n]` of each completion, with its stop token.
        logprobs: fp32 `[n]` of each completion, as in `Rollout`.
        finished: False where the token limit cut a completion off.
    """

    number: int
    tokens: list[np.ndarray]
    logprobs: list[np.ndarray]
    finished: list[bool]


class SampledTokens(NamedTuple):
    """The next tokens of the completions of one prompt.

    Attributes:
        number: of the prompt, as in `SampledGroup`.
        tokens: int32 `[G, n]`; only padding follows the stop token of a completion that has ended.
        logprobs: fp32 `[G, n]`.
    """

    number: int
    tokens: np.ndarray
    logprobs: np.ndarray


def sample_stream(
    model: Model,
    parameters: Parameters,
    processor: Processor,
    prompts: Iterable[Prompt | None],
    settings: Sampling | None = None,
    *,
    layout: SlotLayout,
    weights: Parameters | None = None,
    seed: int = 0,
    stage: int = 0,
    step: int = 0,
    token_sampling: Callable[[Prompt], TokenSampling] | None = None,
    on_tokens: Callable[[SampledTokens], bool] | None = None,
    **changes: Any,
) -> Iterator[list[SampledGroup]]:
    """Samples G completions of every prompt, and yields the groups that have ended, in any order.

    Args:
        model: as it is trained, on its own mesh.
        parameters: model parameters.
        processor: its stop tokens end a completion.
        prompts: this host's prompts, read as slots become free; every host has as many. None says that no prompt waits
            for now: the completions in the slots go on, and the next prompt is asked for later, the sooner while slots
            are free. What follows prompts of equal content may be asked for early.
        settings: sampling settings; the defaults where absent. The batch shrinks to the shares of `ladder` when all
            prompts have been read.
        layout: from `slot_layout`.
        weights: the copy for decoding, from `decode_params`; made here where absent.
        seed: as in `sample`, as `stage` and `step`.
        stage: index of the stage in the curriculum.
        step: step number within the stage.
        token_sampling: returns how a prompt's tokens are sampled; by default all are sampled by the settings.
        on_tokens: called with the next tokens of each prompt that has not ended, at least once a segment. Where it
            returns false, the prompt leaves its slot, and no group is yielded for it. For one host.
        changes: settings by name, such as `group_size=4`.

    Yields:
        This host's groups that ended in the last decoding call, perhaps none; hosts yield together.

    Raises:
        TypeError: a change that is no setting.
        ValueError: impossible settings, or `on_tokens` on several hosts.
        BudgetError: a prompt longer than a slot.
    """
    if on_tokens and jax.process_count() > 1:
        raise ValueError("on_tokens decides on one host alone; start one process")
    settings = with_changes(settings, changes)
    seeds = seed, stage, step
    reader = _PromptReader(model, parameters, processor, settings, layout, weights, seeds, token_sampling)
    yield from _sample_slots(reader, iter(prompts), on_tokens)


def _sample_slots(
    reader: _PromptReader, source: Iterator[Prompt | None], on_tokens: Callable[[SampledTokens], bool] | None
) -> Iterator[list[SampledGroup]]:
    """Keeps the slots filled and decodes; see `sample_stream`."""
    layout, batch, finished = reader.layout, None, list[SampledGroup]()
    entering = reader.read(source, ())
    while True:
        while entering and (batch is None or batch.has_room(entering)):
            batch = batch or _SlotBatch(reader, entering)
            batch.insert(entering)
            entering = reader.read(source, batch.contents)
        if batch is None or not batch.active:
            yield finished  # before the next prompt is waited for
            if reader.exhausted:
                return
            finished, entering = [], reader.read(source, batch.contents if batch else ())
            continue
        is_awaiting = not entering and not reader.exhausted and batch.active < layout.slots_per_shard
        smaller_size = batch.compact() if reader.exhausted and not entering else 0
        batch.fit_capacity()
        parts = _LOOKS_FOR_ARRIVALS if is_awaiting else 1
        batch.decode(layout.slots_per_shard - entering.rows if entering else smaller_size, parts)
        yield finished
        entering = entering or reader.read(source, batch.contents)
        finished = batch.collect(on_tokens)


def warm_up_stream(
    model: Model,
    parameters: Parameters,
    processor: Processor,
    entries: Sequence[Sequence[Prompt]],
    settings: Sampling | None = None,
    *,
    layout: SlotLayout,
    weights: Parameters | None = None,
    token_sampling: Callable[[Prompt], TokenSampling] | None = None,
    **changes: Any,
) -> None:
    """Compiles every program of `sample_stream` for prompts of these shapes, and samples first tokens alone.

    Args:
        model: as it is trained.
        parameters: model parameters.
        processor: processor of the model.
        entries: this host's prompts that are read together, up to `host_entering` each, of every shape; with contents
            if those of the stream have some.
        settings: sampling settings.
        layout: from `slot_layout`.
        weights: the copy for decoding.
        token_sampling: as in `sample_stream`.
        changes: settings by name.
    """
    settings = with_changes(settings, changes)
    reader = _PromptReader(model, parameters, processor, settings, layout, weights, (0, 0, 0), token_sampling)
    read = [reader.prefill([_Waiting(0, prompt) for prompt in prompts], finished=True) for prompts in entries]
    batch = _SlotBatch(reader, read[0])
    batch.end(())
    while True:
        for entering in read:
            batch.insert(entering)
            batch.decode(0)
            batch.collect()
        if batch.contents:
            batch.fork(entries[-1], np.full(layout.host_entering, layout.slots_per_shard, np.int32))
        batch.resize_copies()
        smaller = copy(batch)
        while smaller.smaller_size:
            smaller.shrink()
            smaller.decode(0)
            smaller.resize_copies()
        if batch.capacity >= settings.max_new_tokens:
            return
        batch.resize(2 * batch.capacity)


class _Waiting(NamedTuple):
    """A prompt that is not in a slot yet, and its number among this host's."""

    number: int
    prompt: Prompt


class _Entering(NamedTuple):
    """Prompts that are to enter slots together.

    Attributes:
        waiting: this host's prompts; those of its rows are in `SlotLayout.entering_order`.
        rows: slots of each data shard that they take.
        prefilled: E prompts after their prefill, and their completions of one token each; None where slots hold their
            contents.
    """

    waiting: tuple[_Waiting, ...]
    rows: int
    prefilled: tuple[PromptState, DecodeState] | None


class _PromptReader:
    """Reads prompts: collates a few of them and prefills them, unless slots hold their contents.

    Attributes:
        spec: sampler specification.
        settings: sampling settings.
        layout: the slots.
        decoding_params: the copy for decoding.
        exhausted: whether the source has no more prompts.
    """

    def __init__(
        self,
        model: Model,
        parameters: Parameters,
        processor: Processor,
        settings: Sampling,
        layout: SlotLayout,
        weights: Parameters | None,
        seeds: tuple[int, int, int],
        token_sampling: Callable[[Prompt], TokenSampling] | None = None,
    ) -> None:
        self.spec, self.settings, self.layout = processor_spec(model, processor, settings), settings, layout
        self.decoding_params = decoding_weights(model, parameters, self.spec.decoding) if weights is None else weights
        self.exhausted = False
        self._model, self._parameters, self._seeds = model, parameters, seeds
        self._token_sampling = token_sampling
        self._waiting: list[_Waiting] = []
        self._count = 0

    @property
    def seeds(self) -> np.ndarray:
        """Seed, stage and step, uint32 `[3]`."""
        return np.array(self._seeds, np.uint32)

    def read(self, source: Iterator[Prompt | None], held: Collection[int]) -> _Entering | None:
        """Takes the next prompts, and prefills them unless slots hold their contents; None if none waits.

        Args:
            source: prompts.
            held: contents that slots hold.
        """
        self._take(source, held)
        if not self._waiting:
            return None
        is_held = self._waiting[0].prompt.content in held
        alike = [waiting for waiting in self._waiting if (waiting.prompt.content in held) == is_held]
        entering = (alike if is_held else _first_of_each_content(alike))[: self.layout.host_entering]
        numbers = {waiting.number for waiting in entering}
        self._waiting = [waiting for waiting in self._waiting if waiting.number not in numbers]
        return _Entering(tuple(entering), self._rows(entering), None) if is_held else self.prefill(entering)

    def _take(self, source: Iterator[Prompt | None], held: Collection[int]) -> None:
        """Takes prompts until a prefill is full of unequal ones, or enough wait for all slots."""
        while len(self._waiting) < self.layout.host_slots:
            unread = [waiting for waiting in self._waiting if waiting.prompt.content not in held]
            if len(_first_of_each_content(unread)) == self.layout.host_entering:
                return
            prompt = next(source, _END)
            self.exhausted = prompt is _END
            if not isinstance(prompt, Prompt):
                return
            if jax.process_count() > 1:  # whose hosts run the same programs
                prompt = replace(prompt, content=None)
            self._waiting.append(_Waiting(self._count, prompt))
            self._count += 1

    def _rows(self, waiting: Sequence[_Waiting]) -> int:
        return -(-len(waiting) // self.layout.num_shards)

    def prefill(self, waiting: Sequence[_Waiting], *, finished: bool = False) -> _Entering:
        """Dispatches the prefill of up to `host_entering` prompts; where `finished`, to compile alone."""
        layout, spec, prompts = self.layout, self.spec, [item.prompt for item in waiting]
        longest = max(prompts, key=lambda prompt: len(prompt.tokens))
        if len(longest.tokens) > layout.length:
            raise BudgetError(
                f"{longest.name}: {len(longest.tokens)} tokens, but a slot holds {layout.length}: lay slots out for the"
                " longest prompt"
            )
        batch = collate_prompts(self._model, spec.decoding, layout.entering_rows(prompts), self.settings)
        repeated = np.array(layout.entering_order()) >= len(prompts)
        done = np.tile((repeated | finished)[:, None], self.settings.group_size)
        prompt_state, state = sampler_programs(spec).prefill(
            self._parameters,
            self.decoding_params,
            batch,
            to_devices(done, self._model.mesh),
            self.seeds,
            self.sampling_rows(layout.entering_rows(prompts)),
        )
        return _Entering(tuple(waiting), self._rows(waiting), (prompt_state, state))

    def sampling_rows(self, rows: Sequence[Prompt]) -> TokenSampling | None:
        """Returns how the tokens of a host's rows are sampled; None where the specification says it."""
        if self._token_sampling is None:
            return None
        columns = zip(*map(self._token_sampling, rows), strict=True)
        dtypes = np.float32, np.int32, np.float32
        arrays = [np.array(column, dtype) for column, dtype in zip(columns, dtypes, strict=True)]
        return TokenSampling(*to_devices(arrays, self._model.mesh))


_END = object()


def _first_of_each_content(waiting: Sequence[_Waiting]) -> list[_Waiting]:
    """Leaves out prompts that follow one of equal content; those without content are unequal."""
    firsts = dict[Any, _Waiting]()
    for item in waiting:
        content = item.prompt.content
        firsts.setdefault(("number", item.number) if content is None else content, item)
    return list(firsts.values())


@dataclass(slots=True)
class _Resident:
    """A prompt in a slot: its number, and the tokens and log-probs of its completions so far, `[G, n]` each.

    Attributes:
        num_reported: items of both lists that `unreported` has returned.
    """

    number: int
    tokens: list[np.ndarray]
    logprobs: list[np.ndarray]
    num_reported: int = 0

    def unreported(self) -> SampledTokens:
        """Returns the tokens since the last call."""
        new = [np.concatenate(x[self.num_reported :], axis=1) for x in (self.tokens, self.logprobs)]
        self.num_reported = len(self.tokens)
        return SampledTokens(self.number, *new)

    def group(self, spec: SamplerSpec) -> SampledGroup:
        """Cuts the completions off at their first stop token, or at the token limit."""
        tokens, logprobs = (np.concatenate(x, axis=1)[:, : spec.max_new_tokens] for x in (self.tokens, self.logprobs))
        is_stop = np.isin(tokens, spec.stop_token_ids)
        finished = [bool(row.any()) for row in is_stop]
        lengths = np.where(finished, is_stop.argmax(axis=1) + 1, tokens.shape[1])
        return SampledGroup(
            self.number,
            [row[:length] for row, length in zip(tokens, lengths, strict=True)],
            [row[:length] for row, length in zip(logprobs, lengths, strict=True)],
            finished,
        )


class _SlotBatch:
    """The resident batch.

    Attributes:
        active: prompts with unfinished completions on the data shard that has most of them, at most.
        capacity: tokens of a completion that its caches hold.
        smaller_sizes: slots of a data shard to which it may still shrink, falling.
    """

    def __init__(self, reader: _PromptReader, entering: _Entering) -> None:
        """Makes free slots for prompts like those that are about to enter."""
        assert entering.prefilled
        self._reader = reader
        self._spec, self._layout, self._decoding_params = reader.spec, reader.layout, reader.decoding_params
        self._programs, self._compact = slot_programs(reader.spec), sampler_programs(reader.spec).compact
        self._prompts, self._state = self._programs.init(
            *entering.prefilled, num_slots=reader.layout.num_slots, length=reader.layout.length
        )
        self.active, self.capacity = 0, reader.spec.segment
        self.smaller_sizes = smaller_sizes(reader.layout.slots_per_shard, reader.settings)
        self._oldest = self._place = 0
        self._counts: Any = None
        self._residents: dict[int, _Resident] = {}  # by slot, counted over this host's shards
        self._entered: list[
            tuple[DecodeState, dict[int, int]]
        ] = []  # whose first tokens are to be fetched; row -> slot
        self._contents: dict[int, int | None] = dict.fromkeys(range(reader.layout.host_slots))  # by slot, oldest first

    @property
    def contents(self) -> set[int]:
        """Contents of the prompts that slots hold, the free ones too."""
        return {content for content in self._contents.values() if content is not None}

    @property
    def smaller_size(self) -> int:
        """Slots of a data shard to which it may shrink next; 0 for none."""
        return self.smaller_sizes[0] if self.smaller_sizes else 0

    def has_room(self, entering: _Entering) -> bool:
        """Returns true if every data shard has free slots for these prompts."""
        return self.active + entering.rows <= self._layout.slots_per_shard

    def insert(self, entering: _Entering) -> None:
        """Puts prompts into free slots, those first that were filled longest ago."""
        layout, none = self._layout, self._layout.slots_per_shard
        order, rows_per_shard = layout.entering_order(), layout.host_entering // layout.num_shards
        slots, placed = np.full(layout.host_entering, none, np.int32), dict[int, int]()
        for shard in range(layout.num_shards):
            free = (slot for slot in self._contents if slot // none == shard and slot not in self._residents)
            for row in range(shard * rows_per_shard, (shard + 1) * rows_per_shard):
                if order[row] < len(entering.waiting):
                    placed[row] = next(free)
                    slots[row] = placed[row] - shard * none
        if entering.prefilled:
            prompts, state = entering.prefilled
            self._prompts, self._state = self._programs.insert(
                self._prompts, self._state, prompts, state, to_devices(slots, self._spec.decoding.mesh)
            )
        else:
            state = self.fork([waiting.prompt for waiting in entering.waiting], slots)
        for row, slot in placed.items():
            number, prompt = entering.waiting[order[row]]
            self._residents[slot] = _Resident(number, [], [])
            del self._contents[slot]
            self._contents[slot] = prompt.content
        self._entered.append((state, placed))
        self.active, self._oldest = self.active + entering.rows, max(self._oldest, 1)

    def fork(self, prompts: Sequence[Prompt], slots: np.ndarray) -> DecodeState:
        """Copies prompts whose contents slots hold into other slots; one host has all of them.

        Args:
            prompts: up to E prompts.
            slots: int32 `[E]`, as in `Forks`.

        Returns:
            Their completions, of one token each, without caches.
        """
        rows = self._layout.entering_rows(prompts)
        holders = {content: slot for slot, content in self._contents.items()}
        sources = np.array([holders[prompt.content] for prompt in rows], np.int32)
        firsts = np.array([prompt.first_sample for prompt in rows], np.int32)
        forks = to_devices(Forks(sources, slots, prompt_keys(rows), firsts, None), self._spec.decoding.mesh)
        forks = forks._replace(sampling=self._reader.sampling_rows(rows))
        self._prompts, self._state, entering = self._programs.fork(
            self._decoding_params, self._prompts, self._state, forks, self._reader.seeds
        )
        return entering

    def decode(self, max_active: int, parts: int = 1) -> None:
        """Dispatches decoding until every shard has at most `max_active` active prompts, or for a part of a segment."""
        num_tokens = min(max(1, self._spec.segment // parts), self.capacity + 1 - self._oldest)
        self._state, self._counts = self._programs.decode(
            self._decoding_params, self._prompts, self._state, np.int32(num_tokens), np.int32(max_active)
        )

    def fit_capacity(self) -> None:
        """Fits the caches of the completions to the oldest one, with room for half a segment before they grow again."""
        segment = self._spec.segment
        while self._oldest > self.capacity:
            self.resize(2 * self.capacity)
        while self.capacity > segment and self._oldest + segment // 2 <= self.capacity // 2:
            self.resize(self.capacity // 2)

    def resize(self, capacity: int) -> None:
        """Fits the caches of the completions to another number of tokens."""
        self._state = self._programs.resize(self._state, capacity=capacity)
        self._place = min(capacity, self.capacity)
        self.capacity = capacity

    def resize_copies(self) -> None:
        """Compiles every program of `resize` that may follow."""
        if self.capacity > self._spec.segment:
            copy(self).resize(self.capacity // 2)
        if self.capacity < self._spec.max_new_tokens:
            copy(self).resize(2 * self.capacity)

    def compact(self) -> int:
        """Drops free slots, where the unfinished prompts fit into fewer; not before their first tokens are collected.

        Returns:
            The active prompts of a data shard at which it may drop more; 0 where it may not.
        """
        while self.smaller_size and self.active <= self.smaller_size and not self._entered:
            self.shrink()
        return self.smaller_size

    def shrink(self) -> None:
        """Keeps the slots of unfinished prompts, and as many others as the next smaller size holds."""
        slots_per_shard, (size, *sizes) = self._layout.slots_per_shard, self.smaller_sizes
        self._prompts, self._state = self._compact(self._prompts, self._state, rows=size)
        residents, kept = self._residents, Counter[int]()
        self._residents = {}
        for slot in sorted(residents):  # the order of `compact`
            shard = slot // slots_per_shard
            self._residents[shard * size + kept[shard]] = residents[slot]
            kept[shard] += 1
        self.smaller_sizes = tuple(sizes)
        self._layout = replace(self._layout, num_slots=self._layout.num_slots // slots_per_shard * size)

    def collect(self, on_tokens: Callable[[SampledTokens], bool] | None = None) -> list[SampledGroup]:
        """Waits for the decoding; frees the slots of the groups that have ended, and returns these.

        Slots of other prompts are freed where `on_tokens`, called with their next tokens, returns false.
        """
        for entering, placed in self._entered:
            tokens, logprobs = local_rows(entering.token), local_rows(entering.logprobs)[:, :, :1]
            for row, slot in placed.items():
                self._residents[slot].tokens.append(tokens[row][:, None])
                self._residents[slot].logprobs.append(logprobs[row])
        self._entered.clear()
        self.active, self._oldest = int(self._counts.active), int(self._counts.oldest)
        place = int(self._state.place)
        done, tokens, logprobs = map(local_rows, (self._state.done, self._state.tokens, self._state.logprobs))
        num_tokens, self._place = place - self._place, place
        ended, unwanted = list[SampledGroup](), list[int]()
        for slot, resident in list(self._residents.items()):
            resident.tokens.append(tokens[slot, :, :num_tokens])
            resident.logprobs.append(logprobs[slot, :, :num_tokens])
            if done[slot].all():
                ended.append(self._residents.pop(slot).group(self._spec))
            elif on_tokens and not on_tokens(resident.unreported()):
                unwanted.append(slot)
        if unwanted:
            self.end(unwanted)
        return sorted(ended, key=lambda group: group.number)

    def end(self, slots: Sequence[int]) -> None:
        """Frees slots whose completions are not wanted any more."""
        ends = np.zeros(self._layout.slots_per_shard * self._layout.num_shards, bool)
        ends[list(slots)] = True
        done = self._programs.end(self._state.done, to_devices(ends, self._spec.decoding.mesh))
        self._state = self._state._replace(done=done)
        for slot in slots:
            del self._residents[slot]
        occupied = Counter(slot // self._layout.slots_per_shard for slot in self._residents)
        self.active = max(occupied.values(), default=0)
