"""The process that runs math-verify: a script of its own, so that it loads nothing else and starts fast.

Reads requests from standard input, one JSON object a line: `{"gold": LaTeX, "answer": LaTeX or null}`. Each is served
by a fresh child, forked when math-verify is already imported: a comparison depends on no other, and its death harms
none.
Writes lines: `ready` once; for each request `gold` when the gold answer has been read, then one of `bad_gold`, `equal`,
`not_equal`, `unparsable`, `over_limit`; an answer of null asks only whether the gold one can be read.
"""

import gc
import json
import os
import resource
import signal
import sys
from collections.abc import Callable

from math_verify import parse, verify
from math_verify.parser import LatexExtractionConfig
from sympy import Basic, MatrixBase

# Only LaTeX: the plain-text extraction takes the 2 out of an unreadable "2\\foo".
_LATEX = [LatexExtractionConfig()]

# One comparison of each sort, made before the first fork: every child then finds modules loaded and caches filled.
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

# Only the parent writes a last line, so a child that dies late cannot write a second one.
_EXIT_CODES = {"equal": 10, "not_equal": 11, "unparsable": 12, "bad_gold": 13}
_WORDS = {code: word for word, code in _EXIT_CODES.items()}


def expressions(latex: str) -> list:
    """What math-verify reads; empty when it reads nothing."""
    found = parse(f"${latex}$", _LATEX, parsing_timeout=None)  # pyright: ignore[reportArgumentType]
    return [item for item in found if isinstance(item, Basic | MatrixBase)]


def equal(gold: list, answer: list) -> bool:
    """Whether math-verify calls two readings equal."""
    return verify(gold, answer, timeout_seconds=None)


def compare(gold_latex: str, answer_latex: str | None, gold_is_read: Callable[[], None]) -> str:
    """Serve one request; the last line of its reply."""
    gold = expressions(gold_latex)
    if not gold or not equal(gold, gold):
        return "bad_gold"
    gold_is_read()
    if answer_latex is None:
        equal(gold, expressions("0.123456789"))  # one that cannot be evaluated is equal to itself all the same
        return "equal"
    answer = expressions(answer_latex)
    if not answer:
        return "unparsable"
    return "equal" if equal(gold, answer) else "not_equal"


def main(cpu_seconds: float, memory_bytes: int) -> None:
    """Serve until standard input closes."""
    for number in (signal.SIGTERM, signal.SIGUSR1):  # Slurm tells all processes; the one that reads answers saves first
        signal.signal(number, signal.SIG_IGN)
    replies, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)

    def reply(line: str) -> None:
        os.write(replies, f"{line}\n".encode())

    def serve(gold: str, answer: str | None, gold_is_read: Callable[[], None]) -> str:
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
            # SIGPROF's default action ends the process, even inside one long operation on big integers.
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            os._exit(_EXIT_CODES[compare(gold, answer, gold_is_read)])
        _, status = os.waitpid(child, 0)
        return _WORDS.get(os.waitstatus_to_exitcode(status), "over_limit")

    for gold, answer in _WARM_UP:
        compare(gold, answer, lambda: None)
    gc.freeze()  # a collection in a child would copy every page that it shares
    if serve("200x", "+".join("x" * 200), lambda: None) != "equal":
        sys.exit("it cannot add x 200 times; raise rewards.maths.cpu_seconds or rewards.maths.memory_mb")
    reply("ready")
    os.dup2(nowhere, 2)
    for line in sys.stdin:
        request = json.loads(line)
        reply(serve(request["gold"], request["answer"], lambda: reply("gold")))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
