"""Parsing of config.json: supported models round-trip, others are refused by name."""

import json
from dataclasses import replace

import pytest

from currreft_jax.models.config import PUBLISHED, ModelConfig, UnsupportedModel, VisionConfig
from tests import tiny
from tests.test_weights import nested

# The published config.json of the 3B, field by field.
PUBLISHED_3B = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 128000,
    "max_window_layers": 70,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 151936,
}


def test_the_published_3b_round_trips():
    config = ModelConfig.from_hf(PUBLISHED_3B)
    assert config == PUBLISHED["3b"]
    written = json.loads(json.dumps(config.to_hf()))
    written["vision_config"].pop("model_type")
    assert written == PUBLISHED_3B


@pytest.mark.parametrize("config", [tiny.CONFIG, tiny.UNTIED, *PUBLISHED.values()])
def test_both_config_layouts_parse_equally(config):
    assert ModelConfig.from_hf(config.to_hf()) == ModelConfig.from_hf(nested(config.to_hf())) == config


def test_a_null_quantization_config_is_accepted():
    assert ModelConfig.from_hf({**PUBLISHED_3B, "quantization_config": None}) == PUBLISHED["3b"]


def test_missing_vision_fields_take_the_class_defaults():
    """transformers 4.49 writes only the fields that differ from them."""
    config = replace(PUBLISHED["7b"], vision=replace(PUBLISHED["7b"].vision, hidden_size=1280))
    flat = config.to_hf()
    flat["vision_config"] = {"hidden_size": 1280, "tokens_per_second": 2, "in_chans": 3, "model_type": "qwen2_5_vl"}
    assert ModelConfig.from_hf(flat) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2_vl"}, "'qwen2_vl' is not supported, only 'qwen2_5_vl'"),
        ({"model_type": "qwen3_vl"}, "'qwen3_vl' is not supported"),
        ({"model_type": None}, "None is not supported"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised \(awq\); use the unquantised one"),
        ({"use_sliding_window": True}, "use_sliding_window = True is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act = gelu is not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope type = .*yarn.* is not supported"),
        ({"rope_scaling": None}, "rope type = none is not supported"),
        ({"hidden_size": None, "vocab_size": None}, "hidden_size, vocab_size missing"),
        ({"num_key_value_heads": 5}, "num_key_value_heads must divide"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 23]}}, "sum to half the head size"),
        ({"vision_config": {**PUBLISHED_3B["vision_config"], "out_hidden_size": 3584}}, "out_hidden_size must equal"),
        ({"vision_config": {**PUBLISHED_3B["vision_config"], "hidden_act": "gelu"}}, "vision_config.hidden_act = gelu"),
        ({"vision_config": None}, "vision_config must be an object, not None"),
        ({"text_config": 3}, "text_config must be an object"),
        ({"quantization_config": "awq"}, "quantization_config must be an object"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0 is not a size"),
        ({"hidden_size": "2048"}, "hidden_size = '2048' is not a size"),
        ({"eos_token_id": [1, 2]}, r"eos_token_id = \[1, 2\] is not"),
        ({"image_token_id": 151936}, "must be in the vocabulary"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": 64}}, "mrope_section = 64 is not"),
        ({"vision_config": {**PUBLISHED_3B["vision_config"], "window_size": 0}}, "window_size = 0 is not a size"),
        ({"vision_config": {**PUBLISHED_3B["vision_config"], "window_size": 100}}, "whole merged units"),
        ({"vision_config": {**PUBLISHED_3B["vision_config"], "fullatt_block_indexes": [32]}}, "be indices of blocks"),
    ],
)
def test_unsupported_configs_are_refused_by_name(change, message):
    with pytest.raises(UnsupportedModel, match=message):
        ModelConfig.from_hf({**PUBLISHED_3B, **change})


def test_derived_sizes_of_the_published_tower():
    vision = VisionConfig(hidden_size=1280)
    assert (
        vision.head_dim,
        vision.patches_per_unit,
        vision.window_side,
        vision.patches_per_slot,
        vision.values_per_patch,
    ) == (
        80,
        4,
        4,
        64,
        588,
    )
