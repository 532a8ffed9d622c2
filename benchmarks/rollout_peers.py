"""Hugging Face's `generate` or vLLM beside the sampler: run by `benchmarks/rollout.py`, each in its own environment.

  python benchmarks/rollout_peers.py hf|vllm FOLDER JOB

Loads the model, answers `ready`, and then every line on standard input with one timed run, as a line of JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", VLLM_CPU_KVCACHE_SPACE="1")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # an idle engine of its own process would keep a core busy

Job = dict[str, Any]


def hf(folder: Path, job: Job) -> Callable[[], int]:
    """`generate` on prompts that are repeated G times, their images with them."""
    import numpy as np
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    arrays = np.load(job["arrays"])
    ids = torch.tensor(arrays["tokens"].astype(np.int64), device=device)
    arguments = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.tensor(arrays["pixel_values"], device=device),
        "image_grid_thw": torch.tensor(arrays["grids"], device=device),
        "mm_token_type_ids": (ids == model.config.image_token_id).int(),
    }

    def run() -> int:
        with torch.inference_mode():
            out = model.generate(
                **arguments,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                num_return_sequences=job["group"],
                min_new_tokens=job["tokens"],
                max_new_tokens=job["tokens"],
            )
        return int(out[:, ids.shape[1] :].numel())

    return run


def vllm(folder: Path, job: Job) -> Callable[[], int]:
    """VLLM with its own batching; G samples of a prompt share its cache."""
    from PIL import Image
    from vllm import LLM, SamplingParams

    images = [Image.open(path) for path in job["images"]]
    model = LLM(
        model=str(folder),
        dtype="bfloat16",
        max_model_len=job["longest"],
        limit_mm_per_prompt={"image": 1, "video": 0},
        max_num_seqs=len(images) * job["group"],
        mm_processor_cache_gb=0,
        enable_prefix_caching=False,
        disable_log_stats=True,
    )
    prompts = [
        {"prompt": text, "multi_modal_data": {"image": image}} for text, image in zip(job["texts"], images, strict=True)
    ]
    settings = SamplingParams(
        n=job["group"], temperature=1.0, max_tokens=job["tokens"], ignore_eos=True, detokenize=False
    )

    def run() -> int:
        outputs = model.generate(prompts, settings, use_tqdm=False)
        return sum(len(completion.token_ids) for output in outputs for completion in output.outputs)

    return run


def main() -> None:
    """Serve timed runs."""
    peer, folder, job = sys.argv[1:]
    with open(job, encoding="utf-8") as file:
        run = {"hf": hf, "vllm": vllm}[peer](Path(folder), json.load(file))
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        tokens = run()
        print(json.dumps({"seconds": time.perf_counter() - start, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
