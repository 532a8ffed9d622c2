"""How the completions of a step spread over data shards: microbatches, and parts of groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from currreft_jax.config.method import Method
from currreft_jax.config.training import Config

_LARGEST_TENSOR = 8  # tensor sizes that a refusal offers: more parts than a host has devices are of no use


class BatchLayout(NamedTuple):
    """The layout of a step's batch over data shards; a row of the batch is a prompt with a part of its group.

    Attributes:
        minibatches: minibatches of a step.
        microbatches: microbatches of a minibatch.
        group_parts: parts of each group, one a row. Each part's shard reads the prompt itself.
        completions_per_row: completions of a part.
        rows_per_shard: rows of a data shard in a microbatch.
        num_shards: number of data shards.
    """

    minibatches: int
    microbatches: int
    group_parts: int
    completions_per_row: int
    rows_per_shard: int
    num_shards: int

    @property
    def num_microbatches(self) -> int:
        """Microbatches of a step: those of all its minibatches."""
        return self.minibatches * self.microbatches

    @property
    def num_rows(self) -> int:
        """Rows of a step."""
        return self.rows_per_shard * self.num_shards * self.num_microbatches

    def remarks(self, config: Config) -> list[str]:
        """Lists what differs from whole groups and from the settings' number of microbatches."""
        remarks = []
        if self.group_parts > 1:
            size = self.completions_per_row
            remarks.append(f"groups are split over data shards, into {self.group_parts} parts of {size}")
        if self.microbatches < config.microbatches:
            remarks.append(f"{self.microbatches} of {config.microbatches} microbatches: more would leave shards empty")
        return remarks


def batch_layout(config: Config, num_shards: int, num_hosts: int = 1) -> BatchLayout:
    """Returns the layout of a step's batch: equally many completions on every shard, and whole groups on every host.

    Groups are split into the fewest parts that spread evenly. There are `config.microbatches`, or as many fewer as it
    takes to leave a completion to every shard.

    Args:
        config: all settings.
        num_shards: number of data shards.
        num_hosts: number of hosts that share the shards.

    Raises:
        ValueError: there is no such layout; the message names settings that have one.
    """
    if num_shards % num_hosts:
        raise ValueError(
            f"{num_shards} data shards (mesh.data x mesh.fsdp) do not divide into {num_hosts} hosts: keep the tensor"
            " axis within a host"
        )
    if layout := _find_layout(config, num_shards, num_hosts):
        return layout
    remedies = _list_remedies(config, num_shards, num_hosts)
    rows, minibatches = config.data.batch_size, _minibatches(config)
    what, whole = f"{rows} rows (data.batch_size)", ""
    if config.method is Method.GRPO:
        size = config.sampling.group_size
        what = f"{rows * size} completions (data.batch_size {rows} x sampling.group_size {size})"
        whole = ", which hold whole groups each"
    cut = f" in {minibatches} minibatches" if minibatches > 1 else ""
    hosts = f" of {num_hosts} hosts{whole}" if num_hosts > 1 else ""
    raise ValueError(
        f"{what} of a step{cut} do not spread evenly over {num_shards} data shards (mesh.data x mesh.fsdp){hosts};"
        f" {_joined(remedies)} would"
    )


def split_parts(num_rows: int, group_size: int, num_shards: int) -> int | None:
    """Returns the fewest equal parts of each group of which equally many fit on every shard; None if there are none.

    Args:
        num_rows: number of groups.
        group_size: completions of a group.
        num_shards: number of data shards.
    """
    return next((parts for parts in _divisors(group_size) if num_rows * parts % num_shards == 0), None)


def _find_layout(config: Config, num_shards: int, num_hosts: int) -> BatchLayout | None:
    minibatches = _minibatches(config)
    group_size = config.sampling.group_size if config.method is Method.GRPO else 1
    for microbatches in reversed([*_divisors(config.microbatches)]):
        prompts, rest = divmod(config.data.batch_size, minibatches * microbatches)
        parts = split_parts(prompts, group_size, num_shards)
        if parts and not rest and prompts % num_hosts == 0:
            rows = prompts * parts // num_shards
            return BatchLayout(minibatches, microbatches, parts, group_size // parts, rows, num_shards)
    return None


def _list_remedies(config: Config, num_shards: int, num_hosts: int) -> list[str]:
    """Lists settings that spread evenly: the next batch sizes, the next group size, and the smallest tensor axis."""
    unit, size = config.microbatches * _minibatches(config), config.data.batch_size
    smaller = [
        f"data.batch_size={rows}"
        for rows in range(size // unit * unit, 0, -unit)
        if rows < size and _spreads(config, num_shards, num_hosts, rows=rows)
    ]
    larger = [
        f"data.batch_size={rows}"
        for rows in range((size // unit + 1) * unit, (size + unit) * num_shards + 1, unit)
        if _spreads(config, num_shards, num_hosts, rows=rows)
    ]
    groups = [
        f"sampling.group_size={group_size}"
        for group_size in range(config.sampling.group_size + 1, config.sampling.group_size * num_shards + 1)
        if config.method is Method.GRPO and _spreads(config, num_shards, num_hosts, group_size=group_size)
    ]
    tensors = [
        f"mesh.tensor={config.mesh.tensor * times}"
        for times in range(2, _LARGEST_TENSOR // max(1, config.mesh.tensor) + 1)
        if -1 in (config.mesh.data, config.mesh.fsdp) and num_shards % (times * num_hosts) == 0
        if _spreads(config, num_shards // times, num_hosts)
    ]
    return [*smaller[:1], *larger[:1], *groups[:1], *tensors[:1]]


def _spreads(
    config: Config, num_shards: int, num_hosts: int, *, rows: int | None = None, group_size: int | None = None
) -> bool:
    data = replace(config.data, batch_size=rows or config.data.batch_size)
    sampling = replace(config.sampling, group_size=group_size or config.sampling.group_size)
    return _find_layout(replace(config, data=data, sampling=sampling), num_shards, num_hosts) is not None


def _minibatches(config: Config) -> int:
    return config.grpo.minibatches if config.method is Method.GRPO else 1


def _divisors(number: int) -> Iterator[int]:
    return (divisor for divisor in range(1, number + 1) if number % divisor == 0)


def _joined(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
