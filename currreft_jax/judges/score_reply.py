"""Reads the scores in the reply of a judging model. Loads no JAX."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from currreft_jax.judges.judgement import Scores
from currreft_jax.judges.prompt import CRITERIA

_THOUGHTS = re.compile(r"\s*<think>.*?</think>", re.DOTALL)


class UnreadableReply(ValueError):
    """A reply without scores; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class ScoreReply:
    """The content of a reply.

    Attributes:
        scores: of the four criteria.
        overall: the overall score that the model gives.
        rationale: its reasons.
    """

    scores: Scores
    overall: float
    rationale: str


def parse_score_reply(reply: str, answer: str) -> ScoreReply:
    """Reads the JSON object of scores in a reply, alone or in prose.

    Args:
        reply: the model's text.
        answer: the answer that is judged; objects that it holds itself are no scores of the judge.

    Raises:
        UnreadableReply: there is no such object, or more than one, or a value is missing, of the wrong type, or no
            score from 0 to 100.
    """
    found = _find_objects(reply, answer)
    if not found:
        raise UnreadableReply("it holds no whole JSON object of scores")
    if len(found) > 1:
        raise UnreadableReply("it holds several JSON objects of scores")
    (fields,) = found
    scores = {name: _score(fields, name) for name in (*CRITERIA, "overall")}
    rationale = fields.get("rationale")
    if not isinstance(rationale, str):
        raise UnreadableReply(f"rationale is {_shown(rationale)}, not a text")
    return ScoreReply(Scores(**{field: scores[name] for name, field in CRITERIA.items()}), scores["overall"], rationale)


def _find_objects(reply: str, answer: str) -> list[dict[str, Any]]:
    """Returns the reply's object, or those in its prose that have a score, without repetitions."""
    try:
        whole = json.loads(reply)
    except (ValueError, RecursionError):
        pass
    else:
        return [whole] if isinstance(whole, dict) else []
    text = _THOUGHTS.sub("", reply, count=1) if _THOUGHTS.match(reply) else reply
    decoder, found, start = json.JSONDecoder(), [], 0
    while (start := text.find("{", start)) >= 0:
        try:
            fields, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
            continue
        if fields.keys() & {*CRITERIA, "overall"} and text[start:end] not in answer and fields not in found:
            found.append(fields)
        start = end
    return found


def _score(fields: dict[str, Any], name: str) -> float:
    if name not in fields:
        raise UnreadableReply(f"{name} is missing")
    value = fields[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (math.isfinite(value) and 0 <= value <= 100):
        raise UnreadableReply(f"{name} is {_shown(value)}, not a number from 0 to 100")
    return float(value)


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
