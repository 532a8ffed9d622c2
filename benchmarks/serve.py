"""Measures the server under load against the sampler alone.

  python -m benchmarks.serve [--size 2m] [--waiting 16,64] [--slots 16] [--choices 1] [--tokens 128] [--out serve.json]

Random weights, a small image in each prompt, sampled answers of up to `--tokens` tokens. So many answers wait at once,
in requests of `--choices` answers each; the server is a process of its own, and its client is in this one. Server and
sampler alternate; the medians of tokens per second and of the paired ratios are shown.

  sample       `sample` of all answers in one batch, in segments of the server's
  serve        the same prompts as requests over HTTP, images in base64
  ratio        of serve to sample
"""

import argparse
import base64
import json
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np

import currreft_jax as cr
from benchmarks.workload import SIZES, write_checkpoint, write_image
from currreft_jax.config import CacheType, Precision, Sampling
from currreft_jax.config.output import output_path
from currreft_jax.sampling.sampler import decode_params
from currreft_jax.serving.chat_request import parse_chat_request
from currreft_jax.serving.prompt_building import build_prompt
from currreft_jax.serving.settings import ServerLimits

_MODEL = "model"


def main() -> None:
    """Runs the benchmark."""
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_checkpoint(folder / _MODEL, SIZES[options.size])
        result = {str(waiting): measure(folder, waiting, options) for waiting in map(int, options.waiting.split(","))}
    for waiting, figures in result.items():
        print(f"{waiting} waiting: " + ", ".join(f"{key} {value}" for key, value in figures.items()))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


def measure(folder: Path, waiting: int, options: argparse.Namespace) -> dict[str, Any]:
    """Measures one number of waiting requests."""
    limits = ServerLimits(max_tokens=options.tokens, max_prompt_tokens=options.prompt_tokens)
    bodies = [_body(folder, number, options.choices) for number in range(waiting // options.choices)]
    model, params = cr.load_model(folder / _MODEL, dtype="float32")
    processor = cr.load_processor(folder / _MODEL)
    requests = [parse_chat_request(body, _MODEL, limits) for body in bodies]
    prompts = [
        build_prompt(request, processor, limits, request.seed or 0, str(number))
        for number, request in enumerate(requests)
    ]
    settings = Sampling(
        group_size=options.choices,
        max_new_tokens=options.tokens,
        segment=options.segment,
        precision=Precision.FLOAT32,
        cache=CacheType.FLOAT32,
        prompt_lengths=(options.prompt_tokens,),
    )
    weights = decode_params(model, params, settings)

    def sample() -> int:
        return int(np.asarray(cr.sample(model, params, processor, prompts, settings, weights=weights).lengths).sum())

    process, url = _start_server(folder, options.slots or waiting, options)
    try:
        with httpx2.Client(timeout=600) as client, ThreadPoolExecutor(len(bodies)) as pool:

            def serve() -> int:
                replies = list(pool.map(lambda body: client.post(f"{url}/chat/completions", content=body), bodies))
                return sum(reply.raise_for_status().json()["usage"]["completion_tokens"] for reply in replies)

            engines = {"sample": sample, "serve": serve}
            num_tokens = {name: engine() for name, engine in engines.items()}  # compiles what is left
            rates: dict[str, list[float]] = {name: [] for name in engines}
            for _ in range(options.repeats):
                for name, engine in engines.items():
                    start = time.perf_counter()
                    rates[name].append(engine() / (time.perf_counter() - start))
    finally:
        process.kill()
        process.wait()
    ratios = [serve / sample for serve, sample in zip(rates["serve"], rates["sample"], strict=True)]
    medians = {f"{name} tokens/s": round(statistics.median(rates[name])) for name in engines}
    return {"tokens": num_tokens, **medians, "ratio": round(statistics.median(ratios), 3)}


def _start_server(folder: Path, slots: int, options: argparse.Namespace) -> tuple[subprocess.Popen[bytes], str]:
    log = folder / f"log-{slots}"
    command = [
        *(sys.executable, "-m", "currreft_jax.serve", f"--model={folder / _MODEL}", f"--name={_MODEL}", "--port=0"),
        *(f"--slots={slots}", f"--segment={options.segment}", f"--max-tokens={options.tokens}"),
        *(f"--max-prompt-tokens={options.prompt_tokens}", "--dtype=float32", "--precision=float32"),
    ]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file)
    while "listens at" not in (text := log.read_text()):
        if process.poll() is not None:
            raise RuntimeError(text)
        time.sleep(0.1)
    return process, text.split("listens at ")[1].split()[0]


def _body(folder: Path, number: int, choices: int) -> bytes:
    path = folder / f"{number}.png"
    write_image(path, number, 112, 112)
    url = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": f"What is in image {number}?"}]
    return json.dumps({"messages": [{"role": "user", "content": parts}], "seed": number, "n": choices}).encode()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=[size for size in SIZES if size != "3b"], default="2m")
    parser.add_argument("--waiting", default="16,64", help="numbers of answers, with commas (default %(default)s)")
    parser.add_argument("--slots", type=int, help="of the server (default: as many as answers wait)")
    parser.add_argument("--choices", type=int, default=1, help="answers of a request (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="token limit of an answer (default %(default)s)")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="tokens of a slot (default %(default)s)")
    parser.add_argument("--segment", type=int, default=32, help="tokens of a segment (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=output_path, help="also write the figures here, as JSON")
    return parser


if __name__ == "__main__":
    main()
