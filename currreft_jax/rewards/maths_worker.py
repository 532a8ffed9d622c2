"""The process that runs math-verify: a separate script, which imports nothing else and starts fast.

Reads requests from standard input, one JSON object a line: `{"gold": LaTeX, "answer": LaTeX or null}`. A child forked
after the imports serves each request, so that comparisons depend on none before them and may crash alone.

Writes lines to standard output: `ready` once; for each request `gold` when the gold answer has been parsed, then one of
`bad_gold`, `equal`, `not_equal`, `unparsable`, `over_limit`. An answer of null asks whether the gold can be parsed.
"""

import gc
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable

from math_verify import parse, verify
from math_verify.parser import LatexExtractionConfig
from sympy import Basic, Expr, Float, MatrixBase

# LaTeX only: the plain-text extraction would take the 2 out of an invalid "2\\foo".
_LATEX = [LatexExtractionConfig()]

# A decimal stands for an irrational number up to this relative difference, as in `maths`.
_TOLERANCE = 2e-6
_DECIMAL = re.compile(r"[0-9]\.[0-9]|\.[0-9]")
# Digits to which two exact numbers are evaluated, and of which this many must agree.
_PRECISION, _AGREEING = 60, 50

# One comparison of each sort runs before the first fork: children inherit loaded modules and filled caches.
_WARM_UP = [
    ("(x+3)(x-2)", "x^2+x-6"),
    ("\\frac{\\sqrt{12}}{2}+\\pi", "\\sqrt{3}+3.14"),
    ("\\{1, \\frac{1}{2}\\}", "0.5, 2"),
    ("x=2", "y=3"),
    ("1<x<2", "(1,2)"),
    ("\\sin x", "\\cos x"),
    ("x\\le 3", "x\\ge 3"),
    ("50\\%", "3:4"),
]

# A child reports by its exit code and the parent writes the reply, so that no reply is written twice.
_EXIT_CODES = {"equal": 10, "not_equal": 11, "unparsable": 12, "bad_gold": 13}
_REPLIES = {code: reply for reply, code in _EXIT_CODES.items()}


def parse_latex(latex: str) -> list:
    """Returns the expressions that math-verify parses; empty if it parses none."""
    found = parse(f"${latex}$", _LATEX, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    return [item for item in found if isinstance(item, Basic | MatrixBase)]


def equal(gold: list, answer: list) -> bool:
    """Returns whether math-verify calls two parsed answers equal."""
    return verify(gold, answer, timeout_seconds=None)


def equal_numbers(gold_latex: str, gold: list, answer_latex: str, answer: list) -> bool | None:
    """Compares two numbers by their relative difference; None if the two are not both one finite number.

    math-verify would round them to six decimals, and call all tiny numbers equal.
    """
    if len(gold) != 1 or len(answer) != 1 or "%" in gold_latex + answer_latex:
        return None
    first, second = gold[0], answer[0]
    if not all(isinstance(number, Expr) and number.is_number and number.is_finite for number in (first, second)):
        return None
    first, second = first.evalf(_PRECISION), second.evalf(_PRECISION)
    if not (first.is_number and second.is_number):
        return None
    rounded = _DECIMAL.search(gold_latex) or _DECIMAL.search(answer_latex)
    tolerance = _TOLERANCE if rounded else Float(10, _PRECISION) ** -_AGREEING
    return bool(abs(first - second) <= tolerance * abs(first))


def compare(gold_latex: str, answer_latex: str | None, gold_parsed: Callable[[], None]) -> str:
    """Compares a gold answer and an answer; `gold_parsed` is called between parsing the two."""
    gold = parse_latex(gold_latex)
    if not gold or not equal(gold, gold):
        return "bad_gold"
    gold_parsed()
    if answer_latex is None:
        equal(gold, parse_latex("0.123456789"))  # evaluates the gold, which comparing it with itself does not
        return "equal"
    answer = parse_latex(answer_latex)
    if not answer:
        return "unparsable"
    same = equal(gold, answer)  # first: what it cannot evaluate within the limits gets no verdict
    same_number = equal_numbers(gold_latex, gold, answer_latex, answer)
    return "equal" if (same if same_number is None else same_number) else "not_equal"


def main(cpu_seconds: float, memory_bytes: int) -> None:
    """Serves requests until standard input closes."""
    for signum in (signal.SIGTERM, signal.SIGUSR1):  # Slurm signals all processes; the training process saves first
        signal.signal(signum, signal.SIG_IGN)
    replies, devnull = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)

    def reply(line: str) -> None:
        os.write(replies, f"{line}\n".encode())

    def serve(gold: str, answer: str | None, gold_parsed: Callable[[], None]) -> str:
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
            # The default action of SIGPROF ends the process, even within one long operation on big integers.
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            os._exit(_EXIT_CODES[compare(gold, answer, gold_parsed)])
        _, status = os.waitpid(child, 0)
        return _REPLIES.get(os.waitstatus_to_exitcode(status), "over_limit")

    for gold, answer in _WARM_UP:
        compare(gold, answer, lambda: None)
    gc.freeze()  # a collection in a child would copy the pages that it shares with its parent
    if serve("200x", "+".join("x" * 200), lambda: None) != "equal":
        sys.exit("it cannot add x 200 times; raise rewards.maths.cpu_seconds or rewards.maths.memory_mb")
    reply("ready")
    os.dup2(devnull, 2)
    for line in sys.stdin:
        request = json.loads(line)
        reply(serve(request["gold"], request["answer"], lambda: reply("gold")))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
