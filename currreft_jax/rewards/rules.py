"""The rule by which each kind and task of rows is scored."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from currreft_jax.config import Kind, Rewards, Task
from currreft_jax.rewards.answer import DamagedAnswer, RowError
from currreft_jax.rewards.binary import binary_accuracy, gold_yes_no, parse_yes_no
from currreft_jax.rewards.choice import choice_accuracy, gold_letters, parse_letters
from currreft_jax.rewards.classify import classify_accuracy, gold_labels, parse_labels
from currreft_jax.rewards.detection import detection_accuracy, gold_boxes, parse_boxes
from currreft_jax.rewards.maths import Comparison, Expression, gold_expression, math_accuracy, parse_expression
from currreft_jax.structs import Boxes, Frame, Reason, Row, Verdict

Parsed = TypeVar("Parsed")
AnswerScorer = Callable[[str], tuple[Verdict | Comparison | None, Reason | None]]


@dataclass(frozen=True, slots=True)
class ScoringRule(Generic[Parsed]):
    """How answers to one kind and task are parsed and scored.

    Attributes:
        gold: (row, frame, settings) -> the parsed gold answer; raises `RowError`.
        parse: (answer, row, frame, settings) -> the parsed answer, or the reason why it cannot be parsed.
            `DamagedAnswer` if it can be read although it is malformed.
        accuracy: (gold, parsed answer, settings) -> the verdict, or the comparison that math-verify must decide.
    """

    gold: Callable[[Row, Frame | None, Rewards], Parsed]
    parse: Callable[[str, Row, Frame | None, Rewards], Parsed | DamagedAnswer[Parsed] | Reason]
    accuracy: Callable[[Parsed, Parsed, Rewards], Verdict | Comparison]

    def answer_scorer(self, row: Row, frame: Frame | None, settings: Rewards) -> AnswerScorer:
        """Parses the row's gold answer and returns the function that scores an answer against it.

        The function returns the accuracy, and the reason why the answer is malformed or None.

        Raises:
            RowError: the gold answer cannot be parsed.
        """
        gold = self.gold(row, frame, settings)

        def score(answer: str) -> tuple[Verdict | Comparison, Reason | None]:
            parsed = self.parse(answer, row, frame, settings)
            if isinstance(parsed, Reason):
                return Verdict(0.0, parsed), parsed
            if isinstance(parsed, DamagedAnswer):
                return self.accuracy(gold, parsed.value, settings), parsed.reason
            return self.accuracy(gold, parsed, settings), None

        return score

    def flaw(self, answer: str, row: Row, frame: Frame | None, settings: Rewards) -> Reason | None:
        """Returns the reason why an answer is malformed, or None; the row's gold answer is not read."""
        parsed = self.parse(answer, row, frame, settings)
        return parsed.reason if isinstance(parsed, DamagedAnswer) else parsed if isinstance(parsed, Reason) else None


_YES_NO: ScoringRule[bool] = ScoringRule(
    gold=lambda row, frame, settings: gold_yes_no(row),
    parse=lambda answer, row, frame, settings: parse_yes_no(answer),
    accuracy=lambda gold, answer, settings: binary_accuracy(gold, answer),
)
_LETTERS: ScoringRule[frozenset[str]] = ScoringRule(
    gold=lambda row, frame, settings: gold_letters(row),
    parse=lambda answer, row, frame, settings: parse_letters(answer, row),
    accuracy=choice_accuracy,
)
_BOXES: ScoringRule[Boxes] = ScoringRule(
    gold=lambda row, frame, settings: gold_boxes(row, frame),
    parse=parse_boxes,
    accuracy=detection_accuracy,
)
_LABELS: ScoringRule[frozenset[str]] = ScoringRule(
    gold=lambda row, frame, settings: gold_labels(row, settings),
    parse=lambda answer, row, frame, settings: parse_labels(answer, settings),
    accuracy=lambda gold, answer, settings: classify_accuracy(gold, answer),
)
_EXPRESSION: ScoringRule[Expression] = ScoringRule(
    gold=lambda row, frame, settings: gold_expression(row, settings.maths),
    parse=lambda answer, row, frame, settings: parse_expression(answer, settings.maths),
    accuracy=lambda gold, answer, settings: math_accuracy(gold, answer),
)

AnyRule = ScoringRule[bool] | ScoringRule[frozenset[str]] | ScoringRule[Boxes] | ScoringRule[Expression]

RULES: dict[tuple[Kind, Task], AnyRule] = {
    **{(Kind.JUDGE, task): _YES_NO for task in Task},
    **{(Kind.CHOICE, task): _LETTERS for task in Task},
    (Kind.OPEN, Task.DETECTION): _BOXES,
    (Kind.OPEN, Task.CLASSIFY): _LABELS,
    (Kind.OPEN, Task.MATH): _EXPRESSION,
}


def has_rule(row: Row) -> bool:
    """Returns whether a rule scores the row: its gold answer can be checked."""
    return (row.kind, row.task) in RULES


def rule_of(row: Row) -> AnyRule:
    """Returns the rule of the row's kind and task.

    Raises:
        RowError: no rule scores such rows.
    """
    if not has_rule(row):
        rows = f"{row.kind.value} rows" + (f" of task {row.task.value}" if row.kind is not Kind.CHAT else "")
        raise RowError(
            row,
            f"no rule scores {rows}; name a reward of your own (`train --config.rewards.weights`, `score --weight`;"
            " `evaluate` takes none), let a judge score it, or leave it to SFT",
        )
    return RULES[row.kind, row.task]
