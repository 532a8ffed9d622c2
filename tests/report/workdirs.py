"""Writes workdirs in the trainer's layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from currreft_jax.config import Config, Kind, Method, Source, Stage
from currreft_jax.runtime.workdir import write_config

GREY = (128, 128, 128)


def metric_lines(num_steps: int, stage: str = "one", **columns: Any) -> list[dict[str, Any]]:
    """Metrics of `num_steps` steps; each column is a function of the step."""
    columns = columns or {
        "reward": lambda step: step / num_steps,
        "reward/math": lambda step: step / num_steps / 2,
        "rewards/accuracy/mean": lambda step: 0.5,
        "kl": lambda step: 0.01 * step,
        "entropy": lambda step: 1 / step,
        "loss": lambda step: 0.0,
        "step_time": lambda step: 2.0,
    }
    return [
        {"stage": stage, "step": step, **{name: column(step) for name, column in columns.items()}}
        for step in range(1, num_steps + 1)
    ]


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def write_run(workdir: Path, *, stages: Sequence[str] = ("one",), steps: int = 20, **changes: Any) -> Path:
    """Writes settings and metrics of a run whose stages have all begun."""
    config = Config(
        name="made", method=Method.GRPO, stages=[Stage(name, [Source("r.jsonl")], steps) for name in stages]
    )
    for name, value in changes.items():
        setattr(config, name, value)
    for name in stages:
        folder = workdir / name if len(stages) > 1 else workdir
        write_config(config, folder)
        write_lines(folder / "metrics.jsonl", metric_lines(steps, name))
    return workdir


def completion_record(
    text: str = "<think> a </think> <answer> yes </answer>", reward: float = 1.0, **changes: Any
) -> dict:
    tokens = [f" {word}" if index else word for index, word in enumerate(text.split(" "))]
    record = {
        "text": text,
        "finished": True,
        "reward": reward,
        "parts": {"accuracy": reward, "format": 0.0},
        "reasons": {} if reward else {"accuracy": "not_equal"},
        "advantage": reward - 0.5,
        "tokens": tokens,
        "logprobs": [-0.25] * len(tokens),
        "entropies": [0.5] * len(tokens),
        "reference": [-0.75] * len(tokens),
    }
    return record | changes


def rollout_row(number: int = 1, image: Path | None = None, **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": f"row-{number}", "task": "math", "kind": "judge", "problem": "is it?"}
    fields |= {"solution": "yes", "prompt": "<image>is it? yes or no?", "key": number}
    if image:
        fields |= {"image": str(image), "frame": [84, 84], "resized": [84, 84]}
    return fields | {"completions": [completion_record(), completion_record("<answer> no </answer>", 0.0)]} | changes


def detection_row(
    number: int, image: Path, gold: Sequence[float], predicted: Sequence[float], **changes: Any
) -> dict[str, Any]:
    """An open detection row; the model saw the image at twice the size of the row's frame."""
    answer = completion_record(f"<think> a </think> <answer> {list(predicted)} </answer>")
    fields = {"task": "detection", "kind": Kind.OPEN.value, "solution": str(list(gold)), "resized": [168, 168]}
    return rollout_row(number, image, **fields, completions=[answer], **changes)


def write_image(path: Path, side: int = 84, colour: tuple[int, int, int] = GREY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour).save(path)
    return path


def held_out_answer(number: int, reward: float, held_out: str = "one", **row: Any) -> dict[str, Any]:
    """A line of `held_out/STEP.jsonl`: a row of mathematics, or the keys of another one, and an answer."""
    fields = {"id": f"row-{number}", "task": "math", "kind": "judge", "problem": "is it?", "solution": "yes"} | row
    answer = completion_record(fields.pop("text", f"<answer> {reward} </answer>"), reward)
    kept = {key: answer[key] for key in ("text", "finished", "reward", "parts", "reasons")}
    return {"held_out": held_out, "index": number, "row": fields, "answer": kept}
