"""The loss on held-out rows with gold answers: what supervised training memorises of its rows, these do not show."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from currreft_jax.config import OnBadRow, Stage
from currreft_jax.data.buckets import BatchDims, batch_dims, shape_buckets
from currreft_jax.data.examples import make_example
from currreft_jax.data.microbatches import collate_gold, make_microbatches
from currreft_jax.data.mixture import load_mixture
from currreft_jax.data.prompts import load_template
from currreft_jax.models.qwen2_5_vl import Model, Parameters
from currreft_jax.runtime.multihost import shards_per_host, sum_over_hosts, to_devices
from currreft_jax.session.session import Session
from currreft_jax.structs import GroupBatch
from currreft_jax.training.batches import agree_on_dims, layout_on
from currreft_jax.training.gradients import gold_loss
from currreft_jax.training.losses import loss_counts, loss_weights


class LossRows(NamedTuple):
    """Held-out rows with gold answers, in batches of one shape.

    Attributes:
        batches: this host's part of each batch, and the weights of its tokens.
        rows: number of rows over all hosts.
    """

    batches: list[tuple[GroupBatch, np.ndarray]]
    rows: int


def read_loss_rows(session: Session, stage: Stage) -> LossRows | None:
    """Reads the rows of `stage.held_out_loss`; None if the stage has none.

    Raises:
        MixtureError: a row cannot be read.
        BudgetError: a row exceeds the largest bucket.
    """
    if not stage.held_out_loss:
        return None
    config, model, template = session.config, session.model, load_template(session.config.data.template)
    data = replace(config.data, pass_rates="", keep_pass_rates=(0.0, 1.0), on_bad_row=OnBadRow.ERROR)
    with closing(load_mixture([Stage(stage.name, stage.held_out_loss)], 0, data, config.seed)) as mixture:
        refs = [(source.file, int(index)) for source in mixture.sources for index in source.indices]
        own = refs[jax.process_index() :: jax.process_count()]
        examples = [
            make_example(file[i], session.processor, template, location=file.location(i), with_answer=True)
            for file, i in own or refs[:1]
        ]
    shards, layout = shards_per_host(model.mesh), layout_on(config, model.mesh)
    size = layout.rows_per_shard * shards
    # As many batches on every host; repeated rows have no tokens in the loss.
    num_batches = -(-len(refs) // (size * jax.process_count()))
    repeated = [replace(examples[-1], loss_mask=np.zeros_like(examples[-1].loss_mask))]
    padded = [*(examples if own else []), *repeated * (num_batches * size - len(own))]
    (counts,) = sum_over_hosts((loss_counts([example.loss_mask for example in padded]),))
    parts = [
        make_microbatches(padded[start : start + size], model.config, shards, 1)[0]
        for start in range(0, len(padded), size)
    ]
    shape, length = shape_buckets(config.data, session.processor, layout.rows_per_shard).fit(
        _largest(agree_on_dims([batch_dims(part, model.config, shards) for part in parts]))
    )
    collated = [collate_gold(part, model.config, shape, length, shards) for part in parts]
    return LossRows([(group, loss_weights(mask, config.loss_average, counts)) for group, mask in collated], len(refs))


def measure_loss(model: Model, params: Parameters, rows: LossRows) -> float:
    """Returns the loss of all rows, averaged as in training.

    Args:
        model: how to compute.
        params: its parameters, in the model's precision.
        rows: from `read_loss_rows`.
    """
    program = loss_program(model)
    return sum(float(program(params, *to_devices(batch, model.mesh))) for batch in rows.batches)


@lru_cache
def loss_program(model: Model) -> Any:
    """Makes the jitted loss of a batch, the same on all devices."""
    return jax.jit(partial(gold_loss, model), out_shardings=NamedSharding(model.mesh, P()))


def _largest(dims: Sequence[BatchDims]) -> BatchDims:
    return BatchDims(
        prompt_length=max(one.prompt_length for one in dims),
        image_slots=max(one.image_slots for one in dims),
        max_slots_per_image=max(one.max_slots_per_image for one in dims),
        completion_length=max(one.completion_length for one in dims),
    )
