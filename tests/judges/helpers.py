"""A judging server, and answers to judge."""

import json
import re
from pathlib import Path
from typing import Any

from currreft_jax.config import EndpointLimits, Judge, JudgeKind
from currreft_jax.judges import Judged
from currreft_jax.structs import Completion
from tests.endpoint_stub import MODEL, EndpointStub, last_text
from tests.rewards.helpers import make_row, well_formed

KEY_VARIABLE = "CURRREFT_STUB_KEY"
_FENCED = re.compile(r"\[(QUESTION|REFERENCE|ANSWER) (\w+)\]\n(.*?)\n\[END OF \1 \2\]", re.DOTALL)


def conversation_text(messages: list[dict[str, Any]]) -> str:
    """Texts of all messages but the rubric."""
    return "\n".join(last_text([message]) for message in messages if message["role"] != "system")


def fenced_texts(text: str) -> dict[str, str]:
    """What stands between the marks of a request, by name."""
    return {name: content for name, _, content in _FENCED.findall(text)}


def text_outside(text: str) -> str:
    """What stands outside the marks of a request."""
    return _FENCED.sub("", text)


def scores_json(*scores: float, overall: Any = None, rationale: Any = "Looks right.", **changes: Any) -> str:
    """A reply with the four scores; the overall score is their mean unless it is given."""
    names = ("accuracy", "logical_consistency", "format_compliance", "linguistic_fluency")
    fields = {"rationale": rationale, **dict(zip(names, scores, strict=True))}
    fields["overall"] = sum(scores) / 4 if overall is None else overall
    return json.dumps(fields | changes)


def judge_settings(stub: EndpointStub, **changes: Any) -> Judge:
    """Settings for a stub, with short pauses, and no key."""
    quick: dict[str, Any] = {"attempts": 3, "timeout_s": 5.0, "deadline_s": 60.0, "backoff_s": 0.002}
    limits = quick | {"max_backoff_s": 0.02, "key_variable": KEY_VARIABLE} | changes
    return Judge(JudgeKind.ENDPOINT, MODEL, stub.url, endpoint=EndpointLimits(**limits))


def judged(key: str, answer: str = "7", thoughts: str = "look", images: tuple[bytes | Path, ...] = ()) -> Judged:
    """An answer to a question whose reference is 7."""
    text = well_formed(answer).replace("look", thoughts)
    return Judged(key, make_row("open", "math", "7", name=key), images, Completion(text))
