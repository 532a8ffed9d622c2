"""Writes the output of jobs of rejected sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.report.workdirs import write_image, write_lines

SUMMARY = {
    **{"distilled": False, "threshold": 85.0, "kept": 11, "quota": 20, "shortfall": 9, "second_judge": None},
    "sources": [
        {"source": name, "group": "maths", "quota": 10, "rows": 20, "sampled": 20, "kept": kept, "shortfall": 10 - kept}
        | {"reasons": {"kept": kept, "below_threshold": 20 - kept}}
        for name, kept in (("geometry", 8), ("general", 3))
    ],
    "answers": {"sampled": 40, "below_threshold": 29, "kept": 11},
    "histogram": {"25-30": 29, "95-100": 11},
    "judge_against_rules": {"checked": 40, "above_right": 10, "above_wrong": 1, "below_right": 2, "below_wrong": 27},
    "calibration": {
        "planted": {
            "correct": {"answers": 50, "above_threshold": 49, "unjudged": 0},
            "truncated": {"answers": 50, "above_threshold": 2, "unjudged": 1},
        }
    },
    "sweep": [
        {"threshold": 80, "kept": 11, "shortfall": 9, "wrong_share": 0.05, "planted_share": None, "mean_length": 12.5}
    ],
}

FACTS = {"kind": "rules", "model": "", "prompt_version": "rules-1"}


def kept_row(number: int, source: str = "geometry", answer: str = "<answer> 3 </answer>", **changes: Any) -> dict:
    scores = dict.fromkeys(("accuracy", "consistency", "format", "fluency"), 97.0)
    return {
        **{"id": f"{source}/row-{number}", "task": "math", "kind": "chat", "source": source, "images": ["a.png"]},
        "messages": [{"role": "user", "content": "<image>how many?"}, {"role": "assistant", "content": answer}],
        "provenance": {"right_by_rules": True, "sample": 0},
        "judge": {**scores, "overall": 97.0, "rationale": "adds up", **FACTS},
    } | changes


def disputed_row(number: int, text: str = "<answer> 3 </answer>") -> dict:
    """An answer that a second judge scores lower, or not at all if the number is odd."""
    scores = dict.fromkeys(("accuracy", "consistency", "format", "fluency"), 40.0 - number)
    second = {"unjudged": "unreadable", "overall": None} if number % 2 else {**scores, "overall": 40.0 - number}
    second |= {"name": "endpoint careful judge-1", "rationale": "does not add up", "reply": ""}
    return kept_row(number, answer=text, second_judge=second)


def write_job(folder: Path, text: str = "<answer> 3 </answer>", disputed: int = 0) -> Path:
    """Writes a job with 7 and 1 held-out rows of one source, and 3 of another; all answers are the text.

    With disputed answers it has a second judge.
    """
    write_image(folder / "a.png")
    second = {"judge": "endpoint careful judge-1", "kappa": 0.5, "answers": 20, "largest": []} if disputed else None
    (folder / "summary.json").write_text(json.dumps(SUMMARY | {"second_judge": second}))
    if disputed:
        write_lines(folder / "disagreements.jsonl", [disputed_row(number, text) for number in range(disputed)])
    rows = [
        kept_row(number, source, text) for source, count in (("geometry", 8), ("general", 3)) for number in range(count)
    ]
    write_lines(folder / "held_out.jsonl", rows[:1])
    write_lines(folder / "kept.jsonl", rows[1:])
    return folder
