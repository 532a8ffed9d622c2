"""Files of rows with images, and an answerer without a model."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from currreft_jax.config import EvaluatedModel, Evaluation, Source, Suite
from currreft_jax.evaluation.suites import SuiteReply
from currreft_jax.structs import Completion
from tests import tiny


def write_rows(folder: Path, name: str, count: int, *, images: int = 2, first_image: int = 0, **keys) -> Path:
    """Writes maths rows, row i with image i modulo `images`, whose pixels its number fixes."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        row = {"id": f"{name}-{index}", "task": "math", "kind": "open", "problem": f"how many {index}?"}
        row |= {"solution": index, **keys}
        if images:
            number = first_image + index % images
            row["image"] = f"{name}-{number}.png"
            tiny.picture(40 + number, 30, seed=number).save(folder / row["image"])
        rows.append(json.dumps(row) + "\n")
    path = folder / f"{name}.jsonl"
    path.write_text("".join(rows))
    return path


def evaluation_of(files: list[Path], **settings) -> Evaluation:
    suites = [Suite(sources=[Source(str(file))]) for file in files]
    return Evaluation(models=[EvaluatedModel("models/a"), EvaluatedModel("models/b")], suites=suites, **settings)


class Echo:
    """Answers with the row's number, the later of three questions first, and remembers what it was asked."""

    def __init__(self, model, evaluation, *, stop_after=None):
        self.facts = {"model": {"name": model.name, "path": model.path, "hash": "0"}, "pixels": {}, "dtype": ""}
        self.asked, self.prepared, self.checked = [], [], []
        self._stop_after = stop_after
        self.closed = False
        self._right = model.name.endswith("a")

    def check(self, questions):
        self.checked += [question.row.id for question in questions]

    def prepare(self, questions):
        self.prepared += [question.row.id for question in questions]

    def answers(self, questions):
        numbered = enumerate(questions)
        while together := list(islice(numbered, 3)):
            for number, question in reversed(together):
                if len(self.asked) == self._stop_after:
                    raise KeyboardInterrupt
                self.asked.append(question.row.id)
                value = int(question.row.solution) + (not self._right)
                yield number, SuiteReply((Completion(f"<think> t </think> <answer> {value} </answer>"),), None)

    def close(self):
        self.closed = True
