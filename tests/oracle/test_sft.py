"""Supervised training against transformers: the loss of a batch, and the gradient of every weight."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from currreft_jax.config import Kind, LossAverage, Task
from currreft_jax.data.examples import make_example
from currreft_jax.data.microbatches import collate_gold
from currreft_jax.data.packing import BatchShape, slots_per_shard
from currreft_jax.data.processor import load
from currreft_jax.data.prompts import PAPER
from currreft_jax.models import hf
from currreft_jax.structs import Row, Turn
from currreft_jax.training.gradients import sft_gradient
from currreft_jax.training.losses import loss_counts, loss_weights
from tests import tiny
from tests.groups import sequence
from tests.oracle import reference

RELATIVE = 1e-5


def rows(folder) -> list[Row]:
    for number, (width, height) in enumerate([(150, 90), (60, 200)]):
        tiny.picture(width, height, number).save(folder / f"{number}.png")
    images = [str(folder / f"{number}.png") for number in range(2)]
    chat = (
        Turn("user", "<image>first <image>second?"),
        Turn("assistant", "left and right"),
        Turn("user", "and now?"),
        Turn("assistant", "neither"),
    )
    return [
        Row("several turns", Task.OTHER, Kind.CHAT, "", "", images=tuple(images), messages=chat),
        Row(
            "text", Task.OTHER, Kind.CHAT, "", "", messages=(Turn("user", "1 + 1?"), Turn("assistant", "2, of course"))
        ),
        Row("gold", Task.MATH, Kind.OPEN, "how many?", "12", images=(images[0],)),
    ]


@pytest.mark.parametrize("average", [LossAverage.TOKEN, LossAverage.SEQUENCE])
def test_loss_and_gradients_are_transformers(tmp_path, average):
    folder = tmp_path / "checkpoint"
    model, parameters = tiny.write_checkpoint(folder)
    processor = load(folder)
    examples = [make_example(row, processor, PAPER, location=row.id, with_answer=True) for row in rows(tmp_path)]
    targets = [processor.tokenizer.decode(example.completion_tokens[example.loss_mask]) for example in examples]
    assert targets == [
        "left and right<|im_end|>neither<|im_end|>",
        "2, of course<|im_end|>",
        "<answer>12</answer><|im_end|>",
    ]

    shape = BatchShape(512, slots_per_shard([example.prompt for example in examples], model.config.vision), 6)
    batch, mask = collate_gold(examples, model.config, shape, 128, 1)
    weights = loss_weights(mask, average, loss_counts([mask]))
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    gradient, metrics = jax.jit(partial(sft_gradient, model))(parameters, zeros, batch, weights)

    oracle = reference.open_model(folder)
    total = 0.0
    for row, example in enumerate(examples):
        whole = sequence(example.prompt, example.completion_tokens)
        arguments = reference.inputs(oracle, whole, reference.pixel_values(whole))
        reference.check_positions(arguments, model.config.image_token_id, reference.positions(oracle, arguments)[0])
        (oracle if not hasattr(oracle.model, "rope_deltas") else oracle.model).rope_deltas = None
        logits = oracle(**arguments).logits[0, len(example.prompt.tokens) - 1 : -1].float()
        nll = torch.nn.functional.cross_entropy(
            logits, torch.tensor(example.completion_tokens.astype(np.int64)), reduction="none"
        )
        share = (nll * torch.tensor(weights[row, 0, : len(example.completion_tokens)])).sum()
        share.backward()
        total += float(share.detach())
    assert float(metrics["loss"]) == pytest.approx(total, rel=RELATIVE)

    weights_of_oracle = oracle.named_parameters()
    theirs = {hf.hub_name(name): x.grad.numpy() for name, x in weights_of_oracle if x.grad is not None}
    ours = dict(hf.hub_tensors(gradient))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        scale = np.abs(theirs[name]).max()
        np.testing.assert_allclose(value, theirs[name], atol=RELATIVE * scale, rtol=0, err_msg=name)
