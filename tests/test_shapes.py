"""The dtypes and axes in the annotations of structs and model functions, checked against a real batch.

One letter has one size over all arrays of the batch.
"""

import dataclasses
import types
import typing

import jax
import jaxtyping
import numpy as np
import pytest

from currreft_jax.data.processor import load as load_processor
from currreft_jax.models.qwen2_5_vl import token_logprobs
from currreft_jax.structs import (
    GroupBatch,
    GrpoTargets,
    ImagePatches,
    PackedImages,
    Prefix,
    Prompt,
    PromptBatch,
    Rollout,
)
from tests import tiny
from tests.groups import batch_of

STRUCTS = (GroupBatch, GrpoTargets, ImagePatches, PackedImages, Prefix, Prompt, PromptBatch, Rollout)


def annotations_of(annotated) -> dict:
    return typing.get_type_hints(annotated, localns=vars(jaxtyping))


def check(value, annotation, name: str) -> int:
    """Compares a value with its annotation, struct by struct; returns the number of arrays compared."""
    if isinstance(value, STRUCTS):
        hints = annotations_of(type(value))
        return sum(
            check(getattr(value, field.name), hints[field.name], f"{name}.{field.name}")
            for field in dataclasses.fields(value)
        )
    if typing.get_origin(annotation) is tuple:
        elements = typing.get_args(annotation)
        elements = elements[:1] * len(value) if elements[-1] is Ellipsis else elements
        return sum(check(x, element, name) for x, element in zip(value, elements, strict=True))
    if isinstance(annotation, types.UnionType):  # of an array, a struct or a tuple with None
        (annotation,) = [x for x in typing.get_args(annotation) if (x is types.NoneType) == (value is None)]
    if not issubclass(annotation, jaxtyping.AbstractArray):
        assert isinstance(value, annotation), name
        return 0
    shape = f"{value.dtype}{list(value.shape)}"
    assert isinstance(value, annotation), f"{name} is {shape}, annotated as {annotation.__name__}"
    return 1


@pytest.fixture(scope="module")
def arrays(checkpoint):
    """Name, value and annotation of all arguments and results of the model's functions on one batch."""
    model = tiny.model_of()
    parameters = tiny.parameters_of(model)
    processor = load_processor(checkpoint, max_pixels=6_000)
    prompts = [processor.prompt(tiny.user("one image", 1), [tiny.picture(60, 90)]), processor.prompt(tiny.user("none"))]
    batch = batch_of(prompts, model.config)
    tokens = np.zeros((2, 3, 5), np.int32)
    module = type(model.bind(parameters))

    def run(function, *args):
        return jax.jit(lambda parameters, *args: function(model.bind(parameters), *args))(parameters, *args)

    prefix = run(module.prefix, batch)
    hidden = run(module.forward_suffix, prefix, tokens)
    return prompts, {
        "prefix": (module.prefix, {"batch": batch}, prefix),
        "forward_suffix": (module.forward_suffix, {"prefix": prefix, "tokens": tokens}, hidden),
        "forward": (module.forward, {"batch": batch, "tokens": tokens}, run(module.forward, batch, tokens)),
        "prompt_hidden": (module.prompt_hidden, {"batch": batch}, run(module.prompt_hidden, batch)),
        "logprobs": (module.logprobs, {"hidden": hidden, "tokens": tokens}, run(module.logprobs, hidden, tokens)),
        "token_logprobs": (
            token_logprobs,
            {"batch": batch, "tokens": tokens},
            token_logprobs(model, parameters, batch, tokens),
        ),
    }


@pytest.mark.slow
def test_prompts_have_the_annotated_shapes(arrays):
    for prompt in arrays[0]:
        with jaxtyping.jaxtyped("context"):
            assert check(prompt, Prompt, "prompt") == 2 + len(prompt.images)


def test_model_functions_have_the_annotated_shapes(arrays):
    with jaxtyping.jaxtyped("context"):
        for name, (function, arguments, result) in arrays[1].items():
            hints = annotations_of(function)
            for argument, value in arguments.items():
                assert check(value, hints[argument], f"{name}({argument})"), (
                    f"{name}({argument}) has no annotated array"
                )
            assert check(result, hints["return"], f"result of {name}") > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": np.zeros(3, np.int32)}, r"batch.lengths is int32\[3\]"),
        ({"lengths": np.zeros(2, np.int64)}, r"batch.lengths is int64\[2\]"),
        ({"key": np.zeros((2, 3), np.uint32)}, r"batch.key is uint32\[2, 3\]"),
    ],
)
def test_a_wrong_shape_or_dtype_is_found(arrays, change, message):
    batch = dataclasses.replace(arrays[1]["prefix"][1]["batch"], **change)
    with jaxtyping.jaxtyped("context"), pytest.raises(AssertionError, match=message):
        check(batch, PromptBatch, "batch")
