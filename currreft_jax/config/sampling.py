"""Settings of the sampler."""

from dataclasses import dataclass
from enum import Enum

from currreft_jax.config.checks import is_falling_share, is_mesh, is_rising, refuse, refuse_wrong_types


class Precision(Enum):
    """Precision of the decoding copy of the weights, of its activations and products."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"


class CacheType(Enum):
    """Precision of cached keys and values while sampling; `INT8` gives each vector a scale."""

    BFLOAT16 = "bfloat16"
    FLOAT32 = "float32"
    INT8 = "int8"


@dataclass(slots=True)
class Sampling:
    """Sampling of completions.

    Attributes:
        group_size: G, completions per prompt.
        max_new_tokens: token limit of a completion.
        temperature: divides the logits; 0 samples greedily, with log-probs at temperature 1.
        top_k: sample from the k likeliest tokens; 0 for all. Not for training.
        top_p: sample from the fewest likeliest tokens with this total probability; 1 for all. Not for training.
        mesh: axes (data, tensor) of decoding, over the devices of the model's mesh; one may be -1: the rest. A tensor
            axis of 0 is chosen by the model, the devices of a host, and the completions of a step.
        precision: precision of decoding.
        cache: precision of cached keys and values.
        segment: slots by which completions grow; each length compiles once. T is a multiple of it, or `max_new_tokens`.
        ladder: shares of the batch to which it shrinks between segments, when the other prompts are finished.
        prompt_lengths: L, bucket sizes of prompt lengths, where prompts are given one by one.
    """

    group_size: int = 8
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    mesh: tuple[int, int] = (-1, 0)
    precision: Precision = Precision.BFLOAT16
    cache: CacheType = CacheType.BFLOAT16
    segment: int = 128
    ladder: tuple[float, ...] = (0.5, 0.25)
    prompt_lengths: tuple[int, ...] = (64, 128, 256, 512, 768, 1024, 1536, 2048, 4096)


def validate_sampling(sampling: Sampling) -> None:
    """Refuses impossible settings.

    Raises:
        ValueError: naming the setting and the values it takes.
    """
    refuse_wrong_types("sampling", sampling, Sampling)
    axes, temperature, lengths = sampling.mesh, sampling.temperature, sampling.prompt_lengths
    is_greedy = temperature == 0
    demands = [
        (sampling.group_size >= 1, "group_size", sampling.group_size, "1 or more"),
        (sampling.max_new_tokens >= 1, "max_new_tokens", sampling.max_new_tokens, "1 or more"),
        (
            temperature >= 0,
            "temperature",
            temperature,
            "0, for the likeliest token, or a positive number",
        ),
        (sampling.top_k >= 0, "top_k", sampling.top_k, "0, for all tokens, or a number of tokens"),
        (0 < sampling.top_p <= 1, "top_p", sampling.top_p, "a probability in (0, 1]; 1 keeps all tokens"),
        (
            not is_greedy or (sampling.top_k == 0 and sampling.top_p == 1),
            "temperature",
            temperature,
            "a positive number with top_k or top_p: they have no effect at 0",
        ),
        (
            len(axes) == 2 and (tuple(axes) == (-1, 0) or is_mesh(axes)),
            "mesh",
            axes,
            "(data, tensor), of which one may be -1; (-1, 0) chooses the tensor axis",
        ),
        (sampling.segment >= 1, "segment", sampling.segment, "1 or more"),
        (
            is_falling_share(sampling.ladder),
            "ladder",
            sampling.ladder,
            "falling shares in (0, 1); () never shrinks the batch",
        ),
        (is_rising(lengths), "prompt_lengths", lengths, "rising lengths, at least one"),
    ]
    refuse("sampling", demands)


def validate_training_sampling(sampling: Sampling) -> None:
    """Refuses, beyond `validate_sampling`, settings that sample from another distribution than the trained one.

    Raises:
        ValueError: naming the setting and the value it takes.
    """
    validate_sampling(sampling)
    why = "in training: log-probs must be of the distribution that was sampled from"
    positive = "a positive number in training: greedy completions of a group are all the same"
    demands = [
        (sampling.temperature > 0, "temperature", sampling.temperature, positive),
        (sampling.top_k == 0, "top_k", sampling.top_k, f"0 {why}"),
        (sampling.top_p == 1, "top_p", sampling.top_p, f"1 {why}"),
    ]
    refuse("sampling", demands)
