"""A GRPO step against plain float64 code: each completion is a sequence of its own, and every formula is written out.

The plain code shares only the names of parameters and settings with the package. It has no groups, shards or
microbatches; the package runs on a mesh that splits parameters and prompts.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache, partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from currreft_jax.config import (
    AdvantageScale,
    Config,
    Data,
    Grpo,
    LossAverage,
    Method,
    Optimizer,
    Sampling,
    Schedule,
    Stage,
)
from currreft_jax.runtime.sharding import make_mesh
from currreft_jax.runtime.timing import StepTimer
from currreft_jax.training.grpo import grpo_step
from currreft_jax.training.optimizer import stage_optimizer
from currreft_jax.training.update import gradient_function, init_state, update_programs
from tests import tiny
from tests.marks import quick
from tests.recorded import Recorded, context_of

ROWS, L, G, T = 4, 8, 3, 6  # prompts of a microbatch, on two devices
LONGEST, TEMPERATURE, BETA, LOW, HIGH = 10, 0.7, 0.3, 0.2, 0.3
OPTIMIZER = Optimizer(
    learning_rate=0.02,
    schedule=Schedule.LINEAR,
    weight_decay=0.1,
    b1=0.8,
    b2=0.9,
    eps=0.03,  # the size of the gradients: with a small eps Adam divides rounding errors by each other
    max_grad_norm=0.5,
    freeze_vision=True,
    freeze_merger=True,
)
STEPS = 3
KNOWN, V = 30, 32  # tokens of the tokenizer, rows of the table
ALLOWED = np.array([token < 2 or 6 < token < KNOWN for token in range(V)])  # 2 to 6 stand for parts of an image
CONFIG = replace(
    tiny.CONFIG,
    hidden_size=32,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=V,
    rope_theta=50.0,
    mrope_section=(1, 1, 2),
    max_window_layers=2,
    vision=replace(
        tiny.CONFIG.vision,
        depth=1,
        hidden_size=8,
        intermediate_size=4,
        num_heads=2,
        out_hidden_size=32,
        fullatt_block_indexes=(0,),
    ),
    **{name: number for number, name in enumerate(tiny.TOKEN_FIELDS)},
)

# ---------------------------------------------------------------------------------------------------- plain float64


def plain_logits(params, tokens):
    """Qwen2.5-VL's decoder reads one sequence of text, `[S] -> [S, V]`."""
    theta, size = CONFIG.rope_theta, CONFIG.head_dim
    heads, groups = CONFIG.num_attention_heads, CONFIG.num_key_value_heads
    angles = np.outer(np.arange(len(tokens)), theta ** (-np.arange(0, size, 2) / size))
    cos, sin = (np.concatenate([wave, wave], axis=1)[:, None] for wave in (np.cos(angles), np.sin(angles)))

    def norm(x, scale):
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + CONFIG.rms_norm_eps) * scale

    def rotated(x):
        halves = jnp.split(x, 2, axis=-1)
        return x * cos + jnp.concatenate([-halves[1], halves[0]], axis=-1) * sin

    table = params["embed_tokens"]["embedding"]
    x = table[tokens]
    for number in range(CONFIG.num_hidden_layers):
        layer = jax.tree.map(lambda leaf, number=number: leaf[number], params["layers"])
        attention, mlp = layer["self_attn"], layer["mlp"]
        y = norm(x, layer["input_layernorm"]["scale"])
        query, key, value = (
            jnp.tensordot(y, attention[name]["kernel"], 1) + attention[name]["bias"]
            for name in ("q_proj", "k_proj", "v_proj")
        )
        query, key = rotated(query), rotated(key)
        key, value = (jnp.repeat(y, heads // groups, axis=1) for y in (key, value))
        scores = jnp.einsum("qhd,khd->hqk", query, key) / size**0.5
        scores = jnp.where(np.tril(np.ones(scores.shape[1:], bool)), scores, -jnp.inf)
        attended = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores, axis=-1), value)
        x += jnp.tensordot(attended, attention["o_proj"]["kernel"], 2)
        y = norm(x, layer["post_attention_layernorm"]["scale"])
        gate, up, down = (mlp[name]["kernel"] for name in ("gate_proj", "up_proj", "down_proj"))
        x += (y @ gate * jax.nn.sigmoid(y @ gate) * (y @ up)) @ down
    return norm(x, params["norm"]["scale"]) @ table.T


@jax.jit
def plain_read(params, tokens, start):
    """Log-probs and entropies `[T]` of the T tokens from `start` on."""
    weights = jnp.where(ALLOWED, jnp.exp(plain_logits(params, tokens) / TEMPERATURE), 0)
    shares = weights / weights.sum(axis=-1, keepdims=True)
    entropy = -jnp.sum(shares * jnp.log(jnp.where(ALLOWED, shares, 1)), axis=-1)
    place = start + np.arange(T)
    return jnp.log(shares[place - 1, tokens[place]]), entropy[place - 1]


@jax.jit
def plain_slope(params, tokens, start, slopes):
    """The gradient of a loss that has these `slopes [T]` in the tokens' log-probs."""
    return jax.grad(lambda params: slopes @ plain_read(params, tokens, start)[0])(params)


def plain_sequences(rollout, rows):
    """Prompt and completion of each row, where the completion starts, and its place `[row, g]`.

    Zeros pad all sequences to one length; causal attention keeps them out of what is compared.
    """
    for p, g in np.ndindex(len(rows), G):
        prompt = rollout.prompts[rows[p]]
        yield (p, g), np.concatenate([prompt, rollout.tokens[rows[p], g], np.zeros(L - len(prompt), int)]), len(prompt)


def plain_advantages(rewards, scale):
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if scale is AdvantageScale.NONE:
        return centred
    if scale is AdvantageScale.BATCH:
        return centred / (rewards.std(ddof=1) + 1e-4)
    return centred / (rewards.std(axis=1, ddof=1, keepdims=True) + 1e-4)


def plain_loss(logprobs, old, reference, advantages, lengths, average):
    """The loss, its slope in every log-prob, and sums over tokens; completions of length 0 are left out.

    L = -mean(min(r A, clip(r) A) - beta (e^d - d - 1)), r = e^(log p - log p_old), d = log p_ref - log p.
    """
    loss, slopes = 0.0, np.zeros((*lengths.shape, T))
    sums = dict.fromkeys(("clip_ratio/low_mean", "clip_ratio/high_mean", "kl"), 0)
    sequences = np.count_nonzero(lengths)
    for p, g in np.ndindex(*lengths.shape):
        for t in range(lengths[p, g]):
            weight = {
                LossAverage.SEQUENCE: 1 / (sequences * lengths[p, g]),
                LossAverage.TOKEN: 1 / lengths.sum(),
                LossAverage.CONSTANT: 1 / (sequences * LONGEST),
            }[average]
            ratio, advantage = np.exp(logprobs[p, g, t] - old[p, g, t]), advantages[p, g]
            low, high = ratio < 1 - LOW and advantage < 0, ratio > 1 + HIGH and advantage > 0
            objective = advantage * (1 - LOW if low else 1 + HIGH if high else ratio)
            d = reference[p, g, t] - logprobs[p, g, t]
            kl = np.exp(d) - d - 1
            loss -= weight * (objective - BETA * kl)
            slopes[p, g, t] = -weight * ((0 if low or high else objective) - BETA * (1 - np.exp(d)))
            sums = {name: sums[name] + value for name, value in zip(sums, (low, high, kl), strict=True)}
    return loss, slopes, sums


def plain_gradient(params, reference, rollout, rows, config):
    """The gradient of a minibatch of these rows, and its metrics."""
    grpo, lengths = config.grpo, rollout.lengths
    if grpo.mask_truncated:
        lengths = np.where(rollout.finished, lengths, 0)
    own, entropies, of_reference = np.zeros((3, len(rows), G, T))
    for place, tokens, start in plain_sequences(rollout, rows):
        own[place], entropies[place] = plain_read(params, tokens, start)
        of_reference[place] = plain_read(reference, tokens, start)[0]
    old = rollout.logprobs[rows] if grpo.num_updates * grpo.minibatches > 1 else own
    advantages = plain_advantages(rollout.rewards, grpo.advantage_scale)[rows]
    loss, slopes, sums = plain_loss(own, old, of_reference, advantages, lengths[rows], config.loss_average)
    gradient = jax.tree.map(np.zeros_like, params)
    for place, tokens, start in plain_sequences(rollout, rows):
        of_sequence = plain_slope(params, tokens, start, slopes[place])
        gradient = jax.tree.map(lambda total, share: total + np.asarray(share), gradient, of_sequence)
    norm = np.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
    entropy = entropies[np.arange(T) < lengths[rows][..., None]].sum()
    return gradient, {**sums, "entropy": entropy, "loss": loss, "grad_norm": norm}


def plain_adamw(params, gradient, norm, moments, index, updates):
    """Clips by the global norm, then AdamW at a rate that falls linearly to 0 after the last update."""
    settings = OPTIMIZER
    share, rate = min(1, settings.max_grad_norm / norm), settings.learning_rate * (1 - index / updates)

    def first(m, g):
        return settings.b1 * m + (1 - settings.b1) * share * g

    def second(v, g):
        return settings.b2 * v + (1 - settings.b2) * (share * g) ** 2

    def moved(path, w, m, v):
        decay = 0 if path[-1].key in ("bias", "scale") else settings.weight_decay  # scales are those of norms
        m, v = m / (1 - settings.b1 ** (index + 1)), v / (1 - settings.b2 ** (index + 1))
        return w - rate * (m / (np.sqrt(v) + settings.eps) + decay * w)

    moments = jax.tree.map(first, moments[0], gradient), jax.tree.map(second, moments[1], gradient)
    return jax.tree_util.tree_map_with_path(moved, params, *moments), moments


def plain_step(params, reference, rollout, config):
    """The parameters after a step, the gradient of its first minibatch, and its metrics."""
    minibatches = np.split(np.arange(len(rollout.prompts)), config.grpo.minibatches) * config.grpo.num_updates
    moments = (jax.tree.map(np.zeros_like, params),) * 2
    gradients, metrics = [], []
    for index, rows in enumerate(minibatches):
        gradient, of_minibatch = plain_gradient(params, reference, rollout, rows, config)
        gradients, metrics = [*gradients, gradient], [*metrics, of_minibatch]
        updates = STEPS * len(minibatches)
        params, moments = plain_adamw(params, gradient, of_minibatch["grad_norm"], moments, index, updates)
    summed = {name: sum(values[name] for values in metrics) for name in metrics[0]}
    means = {name: summed[name] / len(minibatches) for name in ("loss", "grad_norm")}
    return params, gradients[0], summed | means


# ------------------------------------------------------------------------------------------------------- the package


@pytest.fixture(scope="module")
def model():
    mesh = make_mesh(fsdp=2, devices=jax.devices()[:2])
    return tiny.model_of(CONFIG, mesh=mesh, tokenizer_size=KNOWN)


@pytest.fixture(scope="module")
def policies(model):
    """The policy and its reference, and the same in float64."""
    laid_out = [tiny.parameters_of(model, seed, scale=0.15) for seed in (0, 1)]
    laid_out[1] = jax.tree.map(lambda x, y: x + 0.1 * y, *laid_out)
    exact = [jax.tree.map(partial(np.asarray, dtype=np.float64), params) for params in laid_out]
    return laid_out, [{name: leaf for name, leaf in params.items() if name != "visual"} for params in exact]


@pytest.fixture(scope="module")
def rollout(policies) -> Recorded:
    """By a sampler that errs in its log-probs; a group is cut off as a whole, another has equal rewards."""
    rng, count = np.random.default_rng(5), 4 * ROWS
    shape = count, G, T
    prompts = [rng.choice(np.flatnonzero(ALLOWED), size).astype(np.int32) for size in rng.integers(2, L + 1, count)]
    tokens = rng.choice(np.flatnonzero(ALLOWED), shape).astype(np.int32)
    lengths, finished = rng.integers(1, T + 1, shape[:2]), rng.random(shape[:2]) < 0.6
    rewards = rng.choice([0.0, 0.5, 1.0, 2.0], shape[:2])
    finished[2], rewards[3] = False, 1.0
    recorded = Recorded(prompts, tokens, lengths, finished, np.zeros(shape, np.float32), rewards)
    own = np.zeros(shape)
    with jax.enable_x64(True):
        for place, *sequence in plain_sequences(recorded, np.arange(count)):
            own[place] = plain_read(policies[1][0], *sequence)[0]
    return replace(recorded, logprobs=(own + 0.3 * rng.standard_normal(shape)).astype(np.float32))


def config_of(microbatches, minibatches, num_updates, mask_truncated, average, scale) -> Config:
    return Config(
        method=Method.GRPO,
        loss_average=average,
        microbatches=microbatches,
        stages=[Stage("one", [], steps=STEPS)],
        data=Data(batch_size=ROWS * microbatches * minibatches, prompt_lengths=(L + 1,), slots=(1,)),
        optimizer=OPTIMIZER,
        grpo=Grpo(
            advantage_scale=scale,
            kl_coef=BETA,
            clip_epsilon_low=LOW,
            clip_epsilon_high=HIGH,
            num_updates=num_updates,
            minibatches=minibatches,
            mask_truncated=mask_truncated,
        ),
        sampling=Sampling(group_size=G, max_new_tokens=LONGEST, temperature=TEMPERATURE),
    )


@lru_cache
def programs_of(model, minibatches: int, num_updates: int):
    """The optimizer and the programs of a step, which know neither averages nor scales nor masks."""
    config = config_of(1, minibatches, num_updates, False, LossAverage.TOKEN, AdvantageScale.NONE)
    optimizer = stage_optimizer(config, 0)
    programs = update_programs(model, optimizer.transform, optimizer.settings, gradient_function(config))
    return optimizer.transform, programs


def assert_close(found, wanted, rtol, rounding=None):
    """Compares each leaf relative to its largest element; `rounding` is an absolute tolerance for each leaf."""
    floors = jax.tree.map(lambda leaf: 0.0, wanted) if rounding is None else rounding
    for (path, leaf), floor in zip(jax.tree_util.tree_leaves_with_path(wanted), jax.tree.leaves(floors), strict=True):
        own = found
        for key in path:
            own = own[key.key]
        atol = rtol * np.abs(leaf).max() + floor
        np.testing.assert_allclose(own, leaf, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))


# Any three values of any three settings stand together in one of them.
EVERY_FIFTH = list(product((1, 2), (1, 2), (1, 2), (False, True), LossAverage, AdvantageScale))[::5]
# Any two values of any two settings stand together in one of them.
PAIRWISE = [
    (1, 1, 2, False, LossAverage.CONSTANT, AdvantageScale.NONE),
    (1, 1, 2, True, LossAverage.SEQUENCE, AdvantageScale.BATCH),
    (1, 2, 1, True, LossAverage.TOKEN, AdvantageScale.NONE),
    (1, 2, 2, True, LossAverage.CONSTANT, AdvantageScale.GROUP),
    (2, 1, 1, False, LossAverage.SEQUENCE, AdvantageScale.NONE),
    (2, 1, 1, True, LossAverage.TOKEN, AdvantageScale.BATCH),
    (2, 1, 2, False, LossAverage.TOKEN, AdvantageScale.GROUP),
    (2, 2, 1, False, LossAverage.CONSTANT, AdvantageScale.BATCH),
    (2, 2, 1, True, LossAverage.SEQUENCE, AdvantageScale.GROUP),
]


@pytest.mark.parametrize(
    ("microbatches", "minibatches", "num_updates", "mask_truncated", "average", "scale"),
    quick(dict.fromkeys([*PAIRWISE, *EVERY_FIFTH]), len(PAIRWISE)),
)
def test_a_step_is_that_of_plain_code(
    monkeypatch, model, policies, rollout, microbatches, minibatches, num_updates, mask_truncated, average, scale
):
    config = config_of(microbatches, minibatches, num_updates, mask_truncated, average, scale)
    (params, reference), (plain_params, plain_reference) = policies
    rollout = rollout.first(config.data.batch_size)
    rollout.replace_sampling(monkeypatch)
    with jax.enable_x64(True):
        wanted, gradient, plain = plain_step(plain_params, plain_reference, rollout, config)

    optimizer, programs = programs_of(model, minibatches, num_updates)
    seen = []

    def add_gradient(params, total, *microbatch):
        seen.append(microbatch)
        return programs.add_gradient(params, total, *microbatch)

    before = jax.tree.map(np.asarray, params)
    state = init_state(model, optimizer, jax.tree.map(jnp.copy, params))
    timer = StepTimer()
    with ThreadPoolExecutor(1) as host:
        probed, context = programs._replace(add_gradient=add_gradient), context_of(config, model, reference)
        result = grpo_step(context, probed, host, state, rollout.examples(), step=1, timer=timer)
    timer.close()
    metrics = result.metrics

    total = programs.zero_gradient()
    for microbatch in seen[:microbatches]:
        total, _ = programs.add_gradient(params, total, *microbatch)
    assert_close(total, gradient, 5e-6)

    moved = jax.tree.map(lambda new, old: np.float64(new) - old, result.state.params, before)
    # Each update rounds fp32 masters by half a unit in their last place.
    rounding = jax.tree.map(lambda w: minibatches * num_updates * 2.0**-24 * np.abs(w).max(), wanted)
    assert_close(moved, jax.tree.map(np.subtract, wanted, plain_params), 1e-5, rounding)
    assert not any(leaf.any() for leaf in jax.tree.leaves(moved["visual"]))
    for name, value in plain.items():
        assert float(metrics[name]) == pytest.approx(value, rel=1e-5, abs=1e-6), name
