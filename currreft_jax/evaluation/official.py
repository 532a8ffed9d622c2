"""The authors' lenient evaluation, for comparison only: their rules rebuilt, faults included. Loads no JAX.

Their program evaluates open rows alone (`eval/muti_process_eval.py` at ding523/Curr_REFT, commit f123433):

| task | right if |
|---|---|
| detection | IoU > 0.5 of the last bracket of four numbers in the answer, cut to whole pixels, in whatever frame |
| classify | the sets are equal, or the gold labels are among the predicted ones: naming every class passes |
| math in domain | math-verify with gold and answer swapped; the same letters, also none; one text within the other |
| math out of domain | the gold answer occurs anywhere in the output: 4 in 14 |

The answer is the content of the first `<answer>`, or the whole text without one, except for detection.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from currreft_jax.config import Kind, Rewards, SuiteDomain, Task
from currreft_jax.rewards import MathsPool
from currreft_jax.rewards.answer import gold_text
from currreft_jax.rewards.maths import Comparison
from currreft_jax.rewards.maths_notation import to_latex
from currreft_jax.rewards.maths_pool import Outcome
from currreft_jax.structs import Completion, Row

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BOX = re.compile(r"\[([-+]?\d+(?:\.\d+)?),([-+]?\d+(?:\.\d+)?),([-+]?\d+(?:\.\d+)?),([-+]?\d+(?:\.\d+)?)\]")
_LETTER = re.compile(r"(?<![A-Z])[A-E](?![A-Z])")
_SEPARATORS = re.compile(r"[,，、\s]+")


def official_verdicts(
    rows: Sequence[Row],
    completions: Sequence[Sequence[Completion]],
    domain: SuiteDomain,
    settings: Rewards,
    pool: MathsPool,
) -> list[tuple[int, ...]]:
    """Returns 1 or 0 for each completion of each row; an empty tuple for rows that the authors do not evaluate."""
    verdicts: list[list[int]] = []
    comparisons: dict[tuple[int, int], Comparison] = {}
    for p, row in enumerate(rows):
        verdicts.append([])
        if row.kind is not Kind.OPEN:
            continue
        gold = gold_text(row)
        for g, completion in enumerate(completions[p]):
            text = completion.text
            if row.task is Task.DETECTION:
                hit = _detection_hit(text, gold)
            elif row.task is Task.CLASSIFY:
                hit = _classify_hit(_content(text), gold)
            elif domain is SuiteDomain.OUT:
                hit = gold in text
            else:
                hit = _text_hit(_content(text), text, gold)
                if not hit and len(text) <= settings.maths.max_characters:
                    comparisons[p, g] = Comparison(to_latex(_content(text)), to_latex(gold))
            verdicts[p].append(int(hit))
    outcomes = pool.compare(list(comparisons.values())) if comparisons else []
    for (p, g), outcome in zip(comparisons, outcomes, strict=True):
        verdicts[p][g] = int(outcome is Outcome.EQUAL)
    return [tuple(hits) for hits in verdicts]


def _content(text: str) -> str:
    match = _ANSWER.search(text)
    return (match[1] if match else text).strip()


def _detection_hit(text: str, gold: str) -> bool:
    if "<answer>" not in text:
        return False
    boxes = [_BOX.findall(part.replace(" ", "").replace("\n", "")) for part in (_content(text), gold)]
    if not all(boxes):
        return False
    first, second = ([int(float(number)) for number in found[-1]] for found in boxes)
    return _iou(first, second) > 0.5


def _iou(first: list[int], second: list[int]) -> float:
    """Computes their IoU: an overlap of one pixel is none, and two boxes without an area have 0."""
    left, top = max(first[0], second[0]), max(first[1], second[1])
    right, bottom = min(first[2], second[2]), min(first[3], second[3])
    overlap = (right - left) * (bottom - top) if left < right - 1 and top < bottom - 1 else 0
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (first, second)]
    union = sum(areas) - overlap
    return overlap / union if union else 0.0


def _classify_hit(content: str, gold: str) -> bool:
    predicted, expected = (set(filter(None, _SEPARATORS.split(text))) for text in (content, gold))
    return predicted == expected or expected <= predicted


def _text_hit(content: str, text: str, gold: str) -> bool:
    """Returns whether letters agree, also where there are none, or one text occurs in the other."""
    letters = [_LETTER.findall(part.upper()) for part in (content, gold)]
    return letters[0] == letters[1] or content in gold or gold in content or gold in text
