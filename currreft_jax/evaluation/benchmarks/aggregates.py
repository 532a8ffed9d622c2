"""Aggregates of benchmarks: units of a score, circular groups, categories. Loads no JAX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from currreft_jax.evaluation.benchmarks.items import BenchmarkItem, BenchmarkVerdict, Decision

OVERALL = "overall"


@dataclass(frozen=True, slots=True)
class ScoredUnit:
    """What counts once: an item, or all rotations of a circular group.

    Attributes:
        key: of the item, or the group.
        image: key of its images; empty without images.
        score: 0 to 1; None where nothing was decided.
        decision: how it came about.
        categories: the categories that it counts for.
        reference: score of the reference answer, of pairwise judgements; else None.
    """

    key: str
    image: str
    score: float | None
    decision: Decision
    categories: tuple[str, ...] = ()
    reference: float | None = None

    @property
    def counted_score(self) -> float:
        """The score, of which what is undecided has none."""
        return self.score or 0.0


@dataclass(frozen=True, slots=True)
class CategoryScore:
    """The scores of a category.

    Attributes:
        name: of the category.
        units: number of items or groups.
        score: mean score of those that did not fail, undecided ones counting 0; None if all failed.
        hit: share of all units with the full score.
        undecided: share of all units of which no rule and no judge read an answer.
        failed: share of all units that were not answered, or whose judge's replies are unreadable.
        judged: share of all units that the judge decided.
        reference: mean score of the reference answers, of pairwise judgements; else None.
    """

    name: str
    units: int
    score: float | None
    hit: float
    undecided: float
    failed: float
    judged: float
    reference: float | None = None

    @property
    def relative(self) -> float | None:
        """Mean score over that of the reference answers; None without them, or if theirs is 0."""
        return self.score / self.reference if self.score is not None and self.reference else None


def score_units(
    items: Sequence[BenchmarkItem], verdicts: Mapping[str, BenchmarkVerdict], images: Mapping[str, str]
) -> list[ScoredUnit]:
    """Puts the verdicts of circular groups together; each other item is a unit of its own.

    Args:
        items: of the benchmark, in order.
        verdicts: by the items' keys.
        images: keys of the items' images, by the items' keys.
    """
    units = []
    for group in circular_groups(items):
        found = [verdicts[item.key] for item in group]
        score, decision = (found[0].score, found[0].decision) if len(group) == 1 else decide_group(found)
        reference = found[0].reference if len(group) == 1 else None
        head = group[0]
        units.append(ScoredUnit(head.group, images[head.key], score, decision, head.categories, reference))
    return units


def circular_groups(items: Iterable[BenchmarkItem]) -> list[list[BenchmarkItem]]:
    """Returns the items of each group together, its first rotation first; groups keep the order of these."""
    groups: dict[str, list[BenchmarkItem]] = {}
    for item in items:
        members = groups.setdefault(item.group, [])
        members.insert(0, item) if item.key == item.group else members.append(item)
    return list(groups.values())


def decide_group(rotations: Sequence[BenchmarkVerdict]) -> tuple[float | None, Decision]:
    """Decides a circular group: right if every rotation is, wrong if one is wrong, whatever the others are."""
    decided = {verdict.decision for verdict in rotations}
    wrong = [verdict for verdict in rotations if verdict.score is not None and verdict.score < 1]
    if wrong:
        by_rule = any(verdict.decision is Decision.RULE for verdict in wrong)
        return 0.0, Decision.RULE if by_rule else Decision.JUDGE
    for decision in (Decision.FAILED, Decision.UNDECIDED):
        if decision in decided:
            return None, decision
    return 1.0, Decision.JUDGE if Decision.JUDGE in decided else Decision.RULE


def summarize(units: Sequence[ScoredUnit]) -> list[CategoryScore]:
    """Computes the scores of all units, then those of each category, in the order of the names."""
    names = sorted({name for unit in units for name in unit.categories})
    members = [(name, [unit for unit in units if name in unit.categories]) for name in names]
    return [_category_score(OVERALL, units), *(_category_score(name, own) for name, own in members)]


def _category_score(name: str, units: Sequence[ScoredUnit]) -> CategoryScore:
    def share(holds: Callable[[ScoredUnit], bool]) -> float:
        return sum(map(holds, units)) / len(units)

    answered = [unit for unit in units if unit.decision is not Decision.FAILED]
    references = [unit.reference for unit in answered if unit.reference is not None]
    return CategoryScore(
        name=name,
        units=len(units),
        score=fmean(unit.counted_score for unit in answered) if answered else None,
        hit=share(lambda unit: unit.score == 1),
        undecided=share(lambda unit: unit.decision is Decision.UNDECIDED),
        failed=share(lambda unit: unit.decision is Decision.FAILED),
        judged=share(lambda unit: unit.decision is Decision.JUDGE),
        reference=fmean(references) if references else None,
    )
