"""Runs another engine in its own environment, for `rollout.py`, `grpo_step.py` and `gpu.py`.

  python benchmarks/peers.py hf|vllm|trl FOLDER JOB

Loads the model, prints `ready`, then answers every line on standard input with one timed run, as a line of JSON.
"""

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1", VLLM_CPU_KVCACHE_SPACE="1")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # a separate engine process keeps a core busy when idle

Job = dict[str, Any]


def hf(folder: Path, job: Job) -> Callable[[], int]:
    """Runs Hugging Face's `generate`, which repeats prompts and images G times."""
    import numpy as np
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if any(folder.glob("*.safetensors")):
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
    else:  # a folder without weights: random ones, made on the device
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):
            model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(folder)).eval()
        torch.set_default_dtype(torch.float32)
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
    """Runs vLLM with its own batching; the G samples of a prompt share its cache."""
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


def trl(folder: Path, job: Job) -> Callable[[], int]:
    """Runs steps of TRL's GRPOTrainer, whose training loop runs in a thread and waits between steps."""
    import torch
    from datasets import Dataset, Features, Image, Value
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    start, done = threading.Semaphore(0), threading.Semaphore(0)

    class OneStepAtATime(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            start.acquire()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            done.release()

    completions = len(job["images"]) * job["group"]
    settings = GRPOConfig(
        output_dir=str(folder.parent / "trl"),
        model_init_kwargs={"dtype": torch.bfloat16},
        per_device_train_batch_size=completions,
        num_generations=job["group"],
        max_completion_length=job["tokens"],
        generation_kwargs={"min_new_tokens": job["tokens"]},
        temperature=1.0,
        top_k=0,
        beta=0.04,
        learning_rate=1e-6,
        max_steps=10_000,
        gradient_checkpointing=False,
        bf16=False,  # the model is in bf16
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    rows = [
        {"prompt": [{"role": "user", "content": job["question"]}], "image": path, "index": index}
        for index, path in enumerate(job["images"])
    ]
    message = [{"role": Value("string"), "content": Value("string")}]
    features = Features({"prompt": message, "image": Image(), "index": Value("int64")})
    trainer = GRPOTrainer(
        model=str(folder),
        reward_funcs=lambda completions, **_: [random.random() for _ in completions],
        args=settings,
        train_dataset=Dataset.from_list(rows, features=features),
        callbacks=[OneStepAtATime()],
    )
    threading.Thread(target=trainer.train, daemon=True).start()

    def run() -> int:
        start.release()
        done.acquire()
        return completions * job["tokens"]

    return run


def main() -> None:
    """Serves timed runs."""
    peer, folder, job = sys.argv[1:]
    with open(job, encoding="utf-8") as file:
        run = {"hf": hf, "vllm": vllm, "trl": trl}[peer](Path(folder), json.load(file))
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        tokens = run()
        print(json.dumps({"seconds": time.perf_counter() - start, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
