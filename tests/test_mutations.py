"""Each easy porting mistake, planted on purpose, must show far above the tolerance of the tests that guard against it.

The package is copied, one line of the copy is changed, and the golden and group checks run on the copy. The fourteenth
mistake, an oracle that is wrong itself, is planted in `oracle/test_model.py`.
"""

import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.marks import quick

PACKAGE = Path(__file__).parent.parent / "currreft_jax"
VISIBLE = 2e-4  # ten times the tolerance

GOLDEN, GROUP, UNTIED = "tied", "group", "untied"

MISTAKES = {
    "01 tanh GELU in the merger": (GOLDEN, "models/vision.py", "approximate=False", "approximate=True"),
    "02 the class default's epsilon": (GOLDEN, "models/text.py", "config.rms_norm_eps", "1e-5"),
    "03 vision frequencies over the whole head": (
        GOLDEN,
        "models/rope.py",
        "inverse_frequencies(head_dim // 2, VISION_THETA)",
        "inverse_frequencies(head_dim, VISION_THETA)[: head_dim // 4]",
    ),
    "03 the decoder's theta in vision": (GOLDEN, "models/rope.py", "VISION_THETA = 10_000.0", "VISION_THETA = 1e6"),
    "04 raster coordinates": (GOLDEN, "data/packing.py", ".transpose(0, 2, 1, 3, 4)", ""),
    "05 no windows": (
        GOLDEN,
        "models/vision.py",
        "cond(is_full, in_image, in_window",
        "cond(is_full, in_image, in_image",
    ),
    "05 windows everywhere": (GOLDEN, "models/vision.py", "cond(is_full, in_image,", "cond(is_full, in_window,"),
    "05 windows of 8 x 8 units": (
        GOLDEN,
        "models/config.py",
        "self.window_size // self.patch_size // self.spatial_merge_size",
        "self.window_size // self.patch_size",
    ),
    "06 full attention leaks between images": (
        GOLDEN,
        "data/packing.py",
        "image_id[shard, units] = num_images",
        "image_id[shard, units] = 0",
    ),
    "06 a row does not see its neighbours": (
        GOLDEN,
        "models/vision.py",
        "lax.cond(shared, three_rows, own_row)",
        "lax.cond(shared, own_row, own_row)",
    ),
    "07 merged tokens in window order": (
        GOLDEN,
        "data/packing.py",
        "append(units.astype",
        "append(np.sort(units).astype",
    ),
    "08 qkv as (heads, 3)": (
        GOLDEN,
        "models/vision.py",
        "jnp.moveaxis(self.qkv(x), -3, 0)",
        "jnp.moveaxis((y := self.qkv(x)).reshape(*y.shape[:-3], y.shape[-2], 3, y.shape[-1]), -2, 0)",
    ),
    "08 query heads as (group, K)": (
        GOLDEN,
        "models/text.py",
        "return query.reshape(*query.shape[:-2], self.kv_heads, -1, query.shape[-1])",
        "return jnp.swapaxes(query.reshape(*query.shape[:-2], -1, self.kv_heads, query.shape[-1]), -3, -2)",
    ),
    "09 patches as (y, x, channel)": (
        GOLDEN,
        "models/vision.py",
        "patches.reshape(*patches.shape[:-1], *kernel.shape[:-1])",
        "jnp.moveaxis(patches.reshape(*patches.shape[:-1], *kernel.shape[1:3], kernel.shape[0]), -1, -3)",
    ),
    "10 one-dimensional positions": (
        GOLDEN,
        "data/processor.py",
        "position + np.stack([np.zeros_like(y), y, x])",
        "position + np.arange(height * width)",
    ),
    "10 interleaved sections": (
        GOLDEN,
        "models/rope.py",
        "np.repeat(np.arange(3), section)",
        "np.arange(sum(section)) % 3",
    ),
    "10 rows and columns swapped": (
        GOLDEN,
        "models/rope.py",
        "np.repeat(np.arange(3), section)",
        "np.repeat([0, 2, 1], section)",
    ),
    "11 text resumes behind all tokens": (GOLDEN, "data/processor.py", "+= max(height, width)", "+= height * width"),
    "11 text resumes behind the unmerged side": (GOLDEN, "data/processor.py", "+= max(height, width)", "+= max(grid)"),
    "12 causality by position": (
        GOLDEN,
        "models/text.py",
        "self.self_attn.attend_prompts(query, key, value)",
        'attend("pqkgd", query, KVSource("pskd", key, value, "pqs", angles[:, :, None, 0] >= angles[:, None, :, 0]))',
    ),
    "13 completions positioned by index": (
        GROUP,
        "models/qwen2_5_vl.py",
        "self.completion_angles(prefix.next_position,",
        "self.completion_angles(prefix.lengths,",
    ),
    "15 an untied head read from the embedding": (UNTIED, "models/qwen2_5_vl.py", "if self.lm_head is None", "if True"),
    "interleaved pairs": (
        GOLDEN,
        "models/rope.py",
        "first, second = jnp.split(x.astype(dtype), 2, axis=-1)",
        "first, second = x[..., ::2].astype(dtype), x[..., 1::2].astype(dtype)",
    ),
    "silu on the wrong side": (
        GOLDEN,
        "models/layers.py",
        "jax.nn.silu(self.gate_proj(x)) * self.up_proj(x)",
        "self.gate_proj(x) * jax.nn.silu(self.up_proj(x))",
    ),
    "no biases": (GOLDEN, "models/layers.py", "if self.bias is not None:", "if False:"),
    "the prompt's padding is read": (GROUP, "models/text.py", '"ps", prompt_mask)', '"ps", prompt_mask | True)'),
    "the first token predicted from the last slot": (
        GROUP,
        "models/qwen2_5_vl.py",
        "index = jnp.maximum(jnp.asarray(lengths) - 1, 0)",
        "index = jnp.full_like(lengths, hidden.shape[1] - 1)",
    ),
}


# One of each kind in the quick suite: towers, positions, packing, the group.
QUICK = ("05 no windows", "10 rows and columns swapped", "13 completions positioned by index", "no biases")


def golden_error(name: str, tmp_path: Path) -> float:
    files, states, test = (
        importlib.import_module(f"tests.{module}") for module in ("golden.files", "states", "test_golden")
    )
    hf = importlib.import_module("currreft_jax.models.hf")
    golden = dict(np.load(files.path_of(name)))
    files.write_folder(golden, tmp_path / "checkpoint")
    model, parameters = hf.load(tmp_path / "checkpoint")
    prompts = files.prompts_of(golden, tmp_path / "checkpoint")
    logits = test.logits_of(model, parameters, states.one_batch(prompts, model.config))
    return max(
        float(np.abs(logits[row, : len(prompt.tokens) : files.EVERY] - golden[f"logits:{row}"]).max())
        for row, prompt in enumerate(prompts)
    )


def group_error(tmp_path: Path) -> float:
    groups, tiny, processor = (
        importlib.import_module(name) for name in ("tests.groups", "tests.tiny", "currreft_jax.data.processor")
    )
    model, parameters = tiny.write_checkpoint(tmp_path / "checkpoint")
    load = processor.load(tmp_path / "checkpoint")
    prompts = [
        load.prompt(tiny.user("an image", 1), [tiny.picture(90, 60)]),
        load.prompt(tiny.user("text alone, longer")),
    ]
    tokens = np.random.default_rng(0).integers(0, 256, (2, 1, 4))
    together = groups.group_logprobs(model, parameters, groups.batch_of(prompts, model.config, spare=3), tokens)
    whole = [groups.sequence(prompt, tokens[row, 0]) for row, prompt in enumerate(prompts)]
    starts = np.array([len(prompt.tokens) for prompt in prompts])
    plain = groups.plain_logprobs(model, parameters, groups.batch_of(whole, model.config), starts, tokens[:, 0])
    return float(np.abs(together[:, 0] - plain).max())


@pytest.fixture
def error_of(tmp_path, monkeypatch):
    """Runs a check on a changed copy of the package, in this process so that JAX is loaded once."""
    loaded = dict(sys.modules)

    def run(check: str, file: str | None = None, old: str = "", new: str = "") -> float:
        shutil.copytree(PACKAGE, tmp_path / "currreft_jax")
        if file:
            path = tmp_path / "currreft_jax" / file
            source = path.read_text()
            assert old in source, f"{file} no longer holds {old!r}: plant the mistake anew"
            path.write_text(source.replace(old, new))
        for name in [name for name in sys.modules if name.split(".")[0] in ("currreft_jax", "tests")]:
            del sys.modules[name]
        monkeypatch.syspath_prepend(tmp_path)
        assert importlib.import_module("currreft_jax").__file__.startswith(str(tmp_path))
        return group_error(tmp_path) if check == GROUP else golden_error(check, tmp_path)

    yield run
    sys.modules.clear()
    sys.modules.update(loaded)


@pytest.mark.parametrize("check", [GOLDEN, GROUP, UNTIED])
def test_the_checks_are_silent_on_the_package_as_it_is(error_of, check):
    assert error_of(check) < 2e-5


@pytest.mark.parametrize("mistake", quick(MISTAKES, QUICK.__contains__))
def test_a_planted_mistake_shows(error_of, mistake):
    assert not error_of(*MISTAKES[mistake]) < VISIBLE  # NaN shows too
