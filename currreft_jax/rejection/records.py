"""The ledger of a job: every sampled answer and every judgement, appended and sealed. Loads no JAX."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from currreft_jax.judges import Calibration, CriterionScores, Judgement, PlantedFault, Unjudged
from currreft_jax.runtime.sealed_file import SealedFile, SealedFileError, open_sealed_file
from currreft_jax.structs import Completion, Frame

LEDGER = "ledger.jsonl"
VERSION = 1
FIRST_JUDGE = "judge"


@dataclass(frozen=True, slots=True)
class SampledAnswer:
    """One completion.

    Attributes:
        completion: the completion.
        right: whether the rules find it right; None where the gold answer cannot be checked.
        reason: why the rules do not; None where they do, or cannot tell.
        unusable: why it can neither be kept nor is judged, such as truncated; empty otherwise.
    """

    completion: Completion
    right: bool | None
    reason: str | None = None
    unusable: str = ""


@dataclass(frozen=True, slots=True)
class AnswerGroup:
    """The completions of a row that were sampled together.

    Attributes:
        frame: frame in which the first image was seen, and boxes are written; None without images.
        answers: `[G]`; empty if the row could not be asked.
        failure: why it could not be asked; empty otherwise.
    """

    frame: Frame | None
    answers: tuple[SampledAnswer, ...]
    failure: str = ""


@contextmanager
def open_records(path: Path) -> Iterator[Records]:
    """Opens or creates the ledger of a job, for this process alone.

    Raises:
        SealedFileError: another process has it open, or the file is no such ledger.
        OSError: the file cannot be opened or written.
    """
    on_damage = "what it recorded is sampled or judged again"
    with open_sealed_file(path, name="ledger of answers", on_damage=on_damage) as file:
        yield Records(path, file)


class Records:
    """All answers and judgements so far, in memory and in the ledger.

    Attributes:
        groups: (source, row) -> its groups in the order of rounds.
        second_judge: name of the last second judge; empty without any.
        calibration: the last calibration of the judge; None without any.
        problems: damaged lines of the ledger.
    """

    def __init__(self, path: Path, file: SealedFile) -> None:
        self.groups: dict[tuple[str, str], list[AnswerGroup]] = defaultdict(list)
        self.second_judge = ""
        self.calibration: Calibration | None = None
        self._judgements: dict[str, dict[str, Judgement]] = defaultdict(dict)
        self._file = file
        is_new = True
        for event, _ in file.events():
            is_new = False
            self._read(path, event)
        self.problems = file.problems
        if is_new:
            file.append("opened", version=VERSION)

    def add_group(self, source: str, row: str, group: AnswerGroup) -> None:
        """Records the answers to a row, after its earlier groups."""
        fields = asdict(group) | {"frame": group.frame and [group.frame.width, group.frame.height]}
        round_index = len(self.groups[source, row])
        self._file.append("answers", source=source, row=row, round=round_index, **fields)
        self.groups[source, row].append(group)

    def add_judgement(self, judgement: Judgement, judge: str = FIRST_JUDGE) -> None:
        """Records the judgement of an answer, by the judge of the job or by a second one."""
        self._file.append("judgement", judge=judge, **asdict(judgement))
        self._keep_judgement(judgement, judge)

    def add_calibration(self, calibration: Calibration) -> None:
        """Records a calibration of the judge."""
        self._file.append("calibration", **asdict(calibration))
        self.calibration = calibration

    def judgement(self, key: str, judge: str = FIRST_JUDGE) -> Judgement | None:
        """Returns the judgement of an answer, or None."""
        return self._judgements[judge].get(key)

    def judgements(self, judge: str = FIRST_JUDGE) -> list[Judgement]:
        """Returns all judgements of a judge."""
        return list(self._judgements[judge].values())

    def sync(self) -> None:
        """Waits until all records are on the disk."""
        self._file.sync()

    def _read(self, path: Path, event: dict[str, Any]) -> None:
        if event["event"] == "opened" and event["version"] != VERSION:
            problem = f"of version {event['version']}, which this program does not read"
            raise SealedFileError(f"{path}: a ledger {problem}: take another folder")
        if event["event"] == "answers":
            groups = self.groups[event["source"], event["row"]]
            if event["round"] == len(groups):  # a group after a damaged one is sampled again
                groups.append(_group(event))
        elif event["event"] == "judgement":
            self._keep_judgement(_judgement(event), event["judge"])
        elif event["event"] == "calibration":
            scores = {PlantedFault(fault): scores for fault, scores in event["scores"].items()}
            self.calibration = Calibration(scores, event["rows"], event["left_out"])

    def _keep_judgement(self, judgement: Judgement, judge: str) -> None:
        self._judgements[judge][judgement.key] = judgement
        if judge != FIRST_JUDGE:
            self.second_judge = judge


def answer_key(source: str, row: str, sample: int) -> str:
    """Returns the key of an answer among those of a job."""
    return f"{source}/{row}/{sample}"


def _group(event: dict[str, Any]) -> AnswerGroup:
    answers = tuple(
        SampledAnswer(**answer | {"completion": Completion(**answer["completion"])}) for answer in event["answers"]
    )
    return AnswerGroup(Frame(*event["frame"]) if event["frame"] else None, answers, event["failure"])


def _judgement(event: dict[str, Any]) -> Judgement:
    return Judgement(
        event["key"],
        CriterionScores(**event["scores"]) if event["scores"] else None,
        event["overall"],
        event["rationale"],
        event["reply"],
        Unjudged(event["unjudged"]) if event["unjudged"] else None,
    )
