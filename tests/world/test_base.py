import jax
import numpy as np
import pytest

from currreft_jax.models.config import ModelConfig
from currreft_jax.world import base
from tests import tiny


def test_the_base_is_a_small_qwen2_5_vl():
    config = ModelConfig.from_hf(base.config())
    assert config.to_hf() == base.config()
    model = tiny.model_of(config)
    assert 1e6 < model.num_parameters < 2e6
    # A window holds four of the image's nine units, so that window and full attention differ.
    assert config.vision.window_side == 2
    assert config.vision.fullatt_block_indexes == (config.vision.depth - 1,)


def test_rotary_angles_separate_neighbouring_cells():
    """The published theta of 1e6 would rotate such small heads by at most 1/30 a row, too little to tell rows apart.

    The slowest pairs rotate little over thirty tokens, so that words are still compared by content.
    """
    config = ModelConfig.from_hf(base.config())
    half = config.head_dim // 2
    angles = config.rope_theta ** -(np.arange(half) / half)
    time, y, x = np.split(angles, np.cumsum(config.mrope_section)[:-1])
    assert y.max() > 0.5 and x.max() > 0.15 and time.max() == 1.0
    assert 30 * angles.min() < 0.5
    assert jax.default_backend() == "cpu"


def test_a_missing_checkpoint_names_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(base, "_CHECKPOINT", tmp_path / "base")
    with pytest.raises(FileNotFoundError, match="make base"):
        base.checkpoint()
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    assert base.checkpoint() == tmp_path / "base"
