"""Scores cases by VLMEvalKit's own functions; run by the interpreter of an environment that has one of its wheels.

Usage: python vlmeval_scores.py < cases.json > scores.json

The package itself is never imported: it would switch off TLS verification. Its modules are, below empty packages.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any


def open_modules() -> Callable[[str], Any]:
    spec = importlib.util.find_spec("vlmeval")
    assert spec and spec.submodule_search_locations
    root = Path(next(iter(spec.submodule_search_locations)))
    for name in ("", ".dataset", ".dataset.utils"):
        module = types.ModuleType(f"vlmeval{name}")
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules[module.__name__] = module

    def load(name: str) -> Any:
        return importlib.import_module(f"vlmeval.{name}")

    sys.modules["vlmeval.dataset.smp"] = load("smp")
    return load


def main() -> None:
    cases = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        scores = {name: SCORERS[name](own) for name, own in cases.items()}
    json.dump(scores, sys.stdout)


LOAD = open_modules()


def options(cases):
    rule = LOAD("utils.matching_util").can_infer
    return [rule(answer, dict(zip("ABCDEFGH", texts, strict=False))) or None for answer, texts in cases]


def short_answers(cases):
    """Verdicts without a judge: what the prefetch takes, and whether the final check finds it right."""
    mathvista = LOAD("dataset.utils.mathvista")
    verdicts = []
    for line in cases:
        taken = mathvista.post_check(line, prefetch=True)
        verdicts.append(bool(mathvista.post_check(line | {"res": taken})) if taken else None)
    return verdicts


def short_answer_table(cases):
    import pandas as pd

    mathvista = LOAD("dataset.utils.mathvista")
    lines = []
    for line in cases:
        taken = mathvista.post_check(line, prefetch=True)
        lines.append(line | {"res": taken or "", "log": "Prefetch succeed" if taken else ""})
    with replaced(mathvista, "load", lambda path: pd.DataFrame(lines)):
        table = mathvista.MathVista_acc("file")
    return dict(zip(table["Task&Skill"], table["acc"], strict=True))


def substrings(cases):
    """Hits, each answer scored in a file of its own, by its category's count."""
    import pandas as pd

    ocrbench = LOAD("dataset.utils.ocrbench")
    hits = []
    for line in cases:
        found: dict[str, Any] = {}
        with (
            replaced(ocrbench, "load", lambda path, line=line: pd.DataFrame([line])),
            replaced(ocrbench, "dump", lambda scores, path, found=found: found.update(scores)),
            replaced(ocrbench, "tqdm", lambda numbers: numbers),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            ocrbench.OCRBench_eval("answers.xlsx")
        hits.append(found["Final Score"])
    return hits


def circular(cases):
    """Hits of groups by exact matching: a table of rows for each case."""
    import pandas as pd

    rules = LOAD("dataset.utils.multiple_choice")
    hits = []
    for rows in cases:
        data = pd.DataFrame(rows)
        with tempfile.TemporaryDirectory() as folder:
            found = rules.mcq_circular_eval(None, data, data.copy(), 1, f"{folder}/result.pkl", "MMBench_DEV_EN")
        hits.append(dict(zip(map(str, found["index"]), map(int, found["hit"]), strict=True)))
    return hits


def accuracies(rows):
    import pandas as pd

    table = LOAD("dataset.utils.multiple_choice").report_acc(pd.DataFrame(rows))
    return {name: float(table[name][0]) for name in table if name != "split"}


class Replies:
    def __init__(self, replies):
        self.replies = replies

    def generate(self, prompt, temperature=0):
        return self.replies


def grades(replies):
    mmvet = LOAD("dataset.utils.mmvet")
    line = {"question": "q", "answer": "a", "prediction": "p"}
    found = []
    for reply in replies:
        scored = mmvet.MMVet_auxeval(Replies(reply), line)
        found.append(scored["score"] if "Succeed" in scored["log"] else None)
    return found


def grade_table(lines):
    import pandas as pd

    mmvet = LOAD("dataset.utils.mmvet")
    with replaced(mmvet, "load", lambda path: pd.DataFrame(lines)):
        skills, combinations = mmvet.MMVet_acc("file")
    return [dict(zip(table["Category"], table["acc"], strict=True)) for table in (skills, combinations)]


def pairs(replies):
    parse = LOAD("dataset.utils.llavabench").parse_score
    return [list(map(float, parse(reply))) for reply in replies]


def pair_table(lines):
    import pandas as pd

    table = LOAD("dataset.utils.llavabench").LLaVABench_score(pd.DataFrame(lines))
    return {row["split"]: [float(value) for value in list(row)[1:]] for _, row in table.iterrows()}


@contextlib.contextmanager
def replaced(module, name, value):
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


SCORERS = {
    **{"options": options, "short_answers": short_answers, "short_answer_table": short_answer_table},
    **{"substrings": substrings, "circular": circular, "accuracies": accuracies},
    **{"grades": grades, "grade_table": grade_table, "pairs": pairs, "pair_table": pair_table},
}

if __name__ == "__main__":
    main()
