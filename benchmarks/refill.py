"""Measures continuous batching against fixed batches, and `evaluate` against the sampler alone.

  python -m benchmarks.refill [--size 2m] [--rows 256] [--slots 32] [--out refill.json]

Random weights, a small image in each prompt, greedy answers whose lengths are forced: lognormal with a median of 40
tokens, the longest of 512, drawn from each answer's key, so that every engine answers a row at the same length. Engines
alternate; the medians of the paired ratios are shown.

  fixed        `sample` in batches of as many prompts as there are slots
  stream       `sample_stream`, whose slots are filled again
  evaluate     the program on the same rows: images read, answers scored and written
  differing    answers of the stream with another token than in fixed batches
  compiled     programs compiled after the warm-up
  memory       growth of the process's peak from an evaluation of an eighth of the rows to one of all
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

import currreft_jax as cr
from benchmarks.workload import SIZES, write_checkpoint, write_image
from currreft_jax.config import CacheType, EvaluatedModel, Evaluation, Precision, Sampling, Source, Suite
from currreft_jax.config.output import output_path
from currreft_jax.evaluation import runner
from currreft_jax.evaluation.answerers import ModelAnswerer
from currreft_jax.evaluation.answers import read_answers
from currreft_jax.runtime.timing import CompilationCounter
from currreft_jax.sampling import programs
from currreft_jax.sampling.abstract import warm_up
from currreft_jax.sampling.continuous import sample_stream, slot_layout, warm_up_stream
from currreft_jax.sampling.sampler import decode_params, sample

MEDIAN, SPREAD, LONGEST = 40, 0.95, 512  # tokens of an answer; the longest of a few hundred reach the limit
_STAGE = (1 << 20) - 1  # of `evaluate`'s answers


def main() -> None:
    """Runs the benchmark."""
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder) / "model", SIZES[options.size])
        processor = cr.load_processor(Path(folder) / "model")
        with patch.object(programs, "sample_token", forced_lengths(programs.sample_token, processor.eos_token_ids[0])):
            result = measure(Path(folder), options)
    print("\n".join(f"{name:24} {value}" for name, value in result.items()))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


def forced_lengths(sample_token: Callable[..., Any], stop_token: int) -> Callable[..., Any]:
    """Returns `sample_token`, which samples the stop token at the length that a completion's key draws."""

    def forced(logits: jax.Array, keys: jax.Array, token_index: jax.Array, *args: Any, **kwargs: Any) -> Any:
        token, logprob, entropy = sample_token(logits, keys, token_index, *args, **kwargs)
        uniform = ((keys[..., 1] >> 8).astype(jnp.float32) + 0.5) * 2.0**-24
        length = jnp.clip(jnp.ceil(MEDIAN * jnp.exp(SPREAD * jax.scipy.special.ndtri(uniform))), 1, LONGEST)
        ends = jnp.reshape(token_index, (-1, 1)) + 1 >= length
        return jnp.where(ends, stop_token, jnp.where(token == stop_token, 0, token)), logprob, entropy

    return forced


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measures all engines in turns: one function, since they share the model, the prompts and the clock."""
    sampling = Sampling(
        group_size=1,
        temperature=0.0,
        max_new_tokens=LONGEST,
        precision=Precision(options.precision),
        cache=CacheType(options.precision),
    )
    evaluation = _evaluation(folder, options, sampling)
    answerer = ModelAnswerer(evaluation.models[0], evaluation)
    (suite,), _ = runner.load_suites(evaluation)
    prompts = [answerer._prompt(question) for question in suite.questions(0, len(suite), evaluation.images[0])]
    model, parameters = cr.load_model(folder / "model", dtype=options.precision)
    processor = cr.load_processor(folder / "model")
    weights = decode_params(model, parameters, sampling)
    layout = slot_layout(model, sampling, options.slots, max(len(prompt.tokens) for prompt in prompts))
    common: dict[str, Any] = {"weights": weights, "stage": _STAGE}
    batches = [prompts[start : start + layout.num_slots] for start in range(0, len(prompts), layout.num_slots)]

    def fixed() -> list[list[int]]:
        answers = []
        for batch in batches:
            rollout = sample(model, parameters, processor, batch, sampling, **common)
            tokens, lengths = np.asarray(rollout.tokens), np.asarray(rollout.lengths)
            answers += [tokens[p, 0, : lengths[p, 0]].tolist() for p in range(len(batch))]
        return answers

    def stream() -> list[list[int]]:
        parts = sample_stream(model, parameters, processor, prompts, sampling, layout=layout, **common)
        groups = sorted((group for part in parts for group in part), key=lambda group: group.number)
        return [group.tokens[0].tolist() for group in groups]

    warm_up(model, parameters, processor, batches[0], sampling, weights=weights)
    entries = [prompts[: layout.host_entering]]
    warm_up_stream(model, parameters, processor, entries, sampling, layout=layout, weights=weights)
    counter = CompilationCounter()
    seconds: dict[str, list[float]] = {"fixed": [], "stream": [], "stream, again": [], "evaluate": []}
    answers: dict[str, list[list[int]]] = {}

    def timed(name: str, engine: Callable[[], list[list[int]]]) -> None:
        start = time.perf_counter()
        answers[name] = engine()
        seconds[name].append(time.perf_counter() - start)
        print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)

    for _ in range(options.repeats):
        timed("fixed", fixed)
        timed("stream", stream)
    compiled = counter.take()
    counter.close()
    peaks = [_evaluate(folder / f"warm-{rows}", _first(evaluation, rows))[1] for rows in (options.rows // 8, 0)]
    for repeat in range(options.repeats):
        timed("stream, again", stream)
        seconds["evaluate"].append(_evaluate(folder / str(repeat), evaluation)[0])
        print(f"evaluate: {seconds['evaluate'][-1]:.2f} s", flush=True)
    lengths = [len(answer) for answer in answers["stream"]]
    return {
        "size": options.size,
        "rows, slots, entering": [len(prompts), layout.num_slots, layout.num_entering],
        "prompt tokens": sorted({len(prompt.tokens) for prompt in prompts}),
        "answer tokens": {
            "median": statistics.median(lengths),
            "mean": statistics.mean(lengths),
            "longest": max(lengths),
        },
        "tokens/s": {name: sum(lengths) / statistics.median(times) for name, times in seconds.items()},
        "stream / fixed": _ratio(seconds["fixed"], seconds["stream"]),
        "evaluate / stream": _ratio(seconds["stream, again"], seconds["evaluate"]),
        "differing": sum(a != b for a, b in zip(answers["fixed"], answers["stream"], strict=True)),
        "compiled": compiled,
        "memory": f"{peaks[0] / 1e6:.0f} MB with {options.rows // 8} rows, {peaks[1] / 1e6:.0f} MB with {options.rows}",
        "seconds": seconds,
    }


def _evaluation(folder: Path, options: argparse.Namespace, sampling: Sampling) -> Evaluation:
    """Writes rows with small images of a few sizes."""
    lines = []
    for row in range(options.rows):
        image = f"{row % 16}.png"
        if row < 16:
            write_image(folder / image, row, 112, 112)
        keys = {"task": "math", "kind": "open", "solution": 1, "problem": "How many things are there?"}
        lines.append(json.dumps({"id": str(row), "image": image, **keys}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines), "utf-8")
    return Evaluation(
        models=[EvaluatedModel(str(folder / "model"), "model")],
        suites=[Suite("rows", [Source(str(folder / "rows.jsonl"))])],
        dtype=options.precision,
        batch_size=options.slots,
        sampling=sampling,
    )


def _first(evaluation: Evaluation, rows: int) -> Evaluation:
    """Returns the evaluation of the first rows; of all for 0."""
    (suite,) = evaluation.suites
    source = Source(suite.sources[0].file, sample=f"first:{rows}" if rows else "all")
    evaluation.suites = [Suite("rows", [source])]
    return evaluation


def _evaluate(out: Path, evaluation: Evaluation) -> tuple[float, int]:
    """Evaluates; returns the seconds after loading and compiling, and the peak of the process's memory in bytes."""
    seconds = []

    class TimedAnswerer(ModelAnswerer):
        def answers(self, questions: Any) -> Iterator[Any]:
            start = time.perf_counter()
            yield from super().answers(questions)
            seconds.append(time.perf_counter() - start)

    lines: list[str] = []
    (file,) = runner.evaluate(evaluation, out, lines.append, lambda model, settings, *_: TimedAnswerer(model, settings))
    problems = [line for line in lines if "compiled" in line]
    if problems or not list(read_answers(file.path)):
        raise RuntimeError("\n".join(problems))
    return seconds[0], 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _ratio(slow: list[float], fast: list[float]) -> float:
    """Returns the median of paired ratios."""
    return round(statistics.median(a / b for a, b in zip(slow, fast, strict=True)), 2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="2m", help="model size")
    parser.add_argument("--rows", type=int, default=256, metavar="N", help="rows (default 256)")
    parser.add_argument("--slots", type=int, default=32, metavar="R", help="slots, and rows of a batch (default 32)")
    parser.add_argument(
        "--precision", choices=["bfloat16", "float32"], default="float32", help="of weights, activations and caches"
    )
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs per engine (default 5)")
    parser.add_argument("--out", type=output_path, metavar="FILE", help="write the results to this JSON file")
    return parser


if __name__ == "__main__":
    main()
