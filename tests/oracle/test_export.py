"""Our exports load in transformers with equal logits, and its checkpoints load here."""

import json

import numpy as np
import pytest
import torch
from packaging.version import Version

from currreft_jax.data.processor import load
from currreft_jax.models import hf
from tests import tiny
from tests.oracle import reference
from tests.oracle.reference import TRANSFORMERS, pixel_values
from tests.oracle.test_model import logits_of
from tests.states import one_batch

CONFIGS = {"tied": tiny.CONFIG, "untied": tiny.UNTIED}


def logits_of_both(model, parameters, folder):
    prompts = [load(folder).prompt(tiny.user("exported", 1), [tiny.picture(120, 90)])]
    ours = logits_of(model, parameters, one_batch(prompts, model.config))
    return ours, reference.answer(reference.open_model(folder), prompts[0], pixel_values(prompts[0])).logits


@pytest.mark.parametrize("config", CONFIGS)
def test_an_exported_folder_loads_completely(config, tmp_path):
    tiny.write_checkpoint(tmp_path / "source", CONFIGS[config])
    model, parameters = hf.load(tmp_path / "source")
    hf.export(model, parameters, load(tmp_path / "source"), tmp_path / "out")
    _, report = reference.Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, theirs = logits_of_both(model, parameters, tmp_path / "out")
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_folder_that_transformers_writes_loads_and_exports_bit_for_bit(config, dtype, tmp_path):
    tiny.write_checkpoint(tmp_path / "source", CONFIGS[config])
    theirs = reference.open_model(tmp_path / "source", dtype)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="300KB")
    written = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert ("text_config" in written) == (Version("4.52") <= TRANSFORMERS)
    model, parameters = hf.load(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    hf.save(model, parameters, tmp_path / "ours")
    assert hf.digests(hf.read_tensors(tmp_path / "ours")) == hf.digests(hf.read_tensors(tmp_path / "theirs"))
    again = reference.open_model(tmp_path / "ours", dtype)
    for (name, a), b in zip(theirs.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
