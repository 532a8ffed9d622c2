"""The report of `data.validate`: findings, statistics of each file, and their tables."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from currreft_jax.data.balance import AnswerBalance


class Problem(StrEnum):
    """Kinds of findings, from errors that stop a run to mere notes (`NOTES`)."""

    BAD_ROW = "bad row"
    MISSING_IMAGE = "missing image"
    UNREADABLE_IMAGE = "unreadable image"
    LONG_PROMPT = "prompt too long"
    BOX = "box out of range"
    SHAPE = "frame of another shape"
    GOLD = "gold answer unreadable"
    ID = "id used twice"
    REPEATED_KEY = "key written twice"
    EMPTY_TURN = "empty answer"
    DUPLICATE = "duplicate row"
    LEAKED_IMAGE = "image in training and testing"
    LEAKED_QUESTION = "question in training and testing"
    FRAME = "frame is not the image's size"
    SAME_WORDING = "wording in training and testing"
    EXTRA_KEY = "key for rewards of your own"
    NO_RULE = "scored by rewards of your own alone"
    PLAIN_IMAGE = "image of one colour"
    BALANCE = "answers out of balance"


NOTES = frozenset(
    {Problem.FRAME, Problem.SAME_WORDING, Problem.EXTRA_KEY, Problem.NO_RULE, Problem.PLAIN_IMAGE, Problem.BALANCE}
)


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem of one row.

    Attributes:
        problem: its kind.
        file: path as given by the user.
        location: file and line.
        message: what is wrong, and the remedy.
    """

    problem: Problem
    file: str
    location: str
    message: str


@dataclass(frozen=True, slots=True)
class FileStats:
    """Sizes of a file and its prompts.

    Attributes:
        file: path as given by the user.
        rows: number of valid rows.
        images: number of distinct image paths.
        median_tokens: median number of tokens of a prompt; of its images alone without a tokenizer.
        most_tokens: number of tokens of the longest prompt, counted in the same way.
        most_characters: number of characters of the longest text of a prompt.
    """

    file: str
    rows: int
    images: int
    median_tokens: int
    most_tokens: int
    most_characters: int


@dataclass(slots=True)
class ValidationReport:
    """Everything that validation found.

    Attributes:
        texts_counted: whether prompt lengths include text tokens, and not only image tokens.
        findings: sorted by `Problem`, then by file and row.
        sizes: statistics of each file.
        balances: (file, balance) for each kind and task with answers to count.
        unchecked: which checks were skipped, and why.
    """

    texts_counted: bool
    findings: list[Finding] = field(default_factory=list)
    sizes: list[FileStats] = field(default_factory=list)
    balances: list[tuple[str, AnswerBalance]] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)

    @property
    def errors(self) -> list[Finding]:
        """The findings that are not notes."""
        return [finding for finding in self.findings if finding.problem not in NOTES]

    def to_json(self) -> dict[str, Any]:
        """Returns the report as a JSON object."""
        counts = Counter((finding.file, finding.problem.value) for finding in self.findings)
        return {
            "errors": len(self.errors),
            "notes": len(self.findings) - len(self.errors),
            "counts": [{"file": file, "problem": name, "rows": n} for (file, name), n in counts.items()],
            "texts_counted": self.texts_counted,
            "findings": [
                {
                    "problem": finding.problem,
                    "file": finding.file,
                    "where": finding.location,
                    "said": finding.message,
                }
                for finding in self.findings
            ],
            "sizes": [asdict(stats) for stats in self.sizes],
            "balances": [
                {"file": file, **asdict(balance), "kind": balance.kind.value, "task": balance.task.value}
                for file, balance in self.balances
            ],
            "unchecked": self.unchecked,
        }


def format_findings(report: ValidationReport, max_examples: int) -> list[str]:
    """Formats a report as tables, with up to `max_examples` findings of each problem in each file."""
    errors, rows = len(report.errors), sum(stats.rows for stats in report.sizes)
    return [
        *_size_table(report),
        *_balance_table(report),
        *_finding_table(report, max_examples),
        "",
        *(f"not checked: {reason}" for reason in report.unchecked),
        f"files {len(report.sizes)}, rows {rows}, errors {errors}, notes {len(report.findings) - errors}",
    ]


def _size_table(report: ValidationReport) -> list[str]:
    tokens = "tokens" if report.texts_counted else "image tokens"
    columns = f"{'rows':>8}{'images':>8}{tokens:>16}{'characters':>12}"
    width = _name_width(stats.file for stats in report.sizes)
    header = [f"{'file':<{width}}{columns}", f"{'':<{width}}{'':>16}{'median':>8}{'most':>8}{'most':>12}"]
    return header + [
        f"{stats.file:<{width}}{stats.rows:>8}{stats.images:>8}{stats.median_tokens:>8}{stats.most_tokens:>8}"
        f"{stats.most_characters:>12}"
        for stats in report.sizes
    ]


def _balance_table(report: ValidationReport) -> list[str]:
    width = _name_width(file for file, _ in report.balances)
    header = ["", f"{'file':<{width}}{'kind':<8}{'task':<10}{'rows':>8}   right answers"] if report.balances else []
    return header + [
        f"{file:<{width}}{balance.kind.value:<8}{balance.task.value:<10}{balance.rows:>8}   {balance}"
        for file, balance in report.balances
    ]


def _finding_table(report: ValidationReport, max_examples: int) -> list[str]:
    groups: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for finding in report.findings:
        name = f"note: {finding.problem}" if finding.problem in NOTES else finding.problem.value
        groups[name, finding.file].append(finding)
    width = _name_width(name for name, _ in groups)
    lines = ["", f"{'problem':<{width}}{'rows':>8}   file"] if groups else []
    for (name, file), findings in groups.items():
        lines += [f"{name:<{width}}{len(findings):>8}   {file}"]
        lines += [f"    {finding.location}: {finding.message}" for finding in findings[:max_examples]]
        lines += [f"    and {len(findings) - max_examples} more"] * (len(findings) > max_examples)
    return lines


def _name_width(names: Iterable[str]) -> int:
    """Returns the width of a table's first column: its longest name, and a gap."""
    return max(40, *(len(name) + 2 for name in names), 0)
