"""Verdicts against those of math-verify, called in this process: no false accept that it does not make too.

The suite compares a part of the pairs, `make oracle` all of them.
"""

from fractions import Fraction
from random import Random

import math_verify
import pytest

from currreft_jax.config import Maths
from currreft_jax.rewards import score_completions
from currreft_jax.rewards.maths import gold_expression, math_accuracy, parse_expression
from currreft_jax.structs import Completion, Reason, Verdict
from tests.rewards.helpers import make_row


def verify(gold: str, answer: str) -> bool:
    """math-verify's own verdict on the texts, in dollars or bare."""
    return any(
        math_verify.verify(math_verify.parse(wrap.format(gold)), math_verify.parse(wrap.format(answer)))
        for wrap in ("${}$", "{}")
    )


def notations(value: Fraction) -> list[str]:
    """Ways to write a value that any parser should agree on."""
    sign, n, d = "-" if value < 0 else "", abs(value.numerator), value.denominator
    texts = [
        rf"{sign}\frac{{{n}}}{{{d}}}",
        rf"{sign}\dfrac{{{2 * n}}}{{{2 * d}}}",
        f"{sign}{n}/{d}",
        f"{sign}{3 * n}/{3 * d}",
    ]
    if d == 1:
        texts += [f"{sign}{n}", f"{sign}{n:,}", f"{sign}{n}.0", f"{sign}0{n}"]
    if 10**4 % d == 0:
        decimal = f"{n / d:.4f}"
        texts += [f"{sign}{decimal}", f"{sign}{decimal}0", f"{sign}{decimal.lstrip('0')}"]
    return texts


def gold_and_other(random: Random) -> tuple[Fraction, str, Fraction, str]:
    gold = Fraction(random.randint(-3000, 3000), random.choice([1, 1, 1, 2, 3, 4, 5, 7, 8, 16, 100]))
    near = [
        Fraction(0),
        Fraction(0),
        Fraction(1),
        Fraction(-1, 10),
        Fraction(1, 100),
        Fraction(1, 10**4),
        Fraction(1, 10**7),
    ]
    other = random.choice([gold + random.choice(near), -gold, 1 / gold if gold else gold, gold * 10])
    return gold, random.choice(notations(gold)), other, random.choice(notations(other))


@pytest.mark.parametrize("count", [400, pytest.param(1500, marks=pytest.mark.oracle)])
def test_exact_number_verdicts_agree_with_math_verify(count):
    random, limits, decided = Random(0), Maths(), 0
    for _ in range(count):
        gold, gold_text, other, text = gold_and_other(random)
        parsed = parse_expression(text, limits)
        assert not isinstance(parsed, Reason)
        verdict = math_accuracy(gold_expression(make_row("open", "math", gold_text), limits), parsed)
        if isinstance(verdict, Verdict):
            decided += 1
            assert (verdict.value == 1) == (gold == other), (gold_text, text)
            assert (verdict.value == 1) == verify(gold_text, text), (gold_text, text)
    assert decided > 0.8 * count


@pytest.mark.parametrize("percent", ["%", r"\%"])
def test_exact_percentage_verdicts_agree_with_math_verify(percent):
    random, limits = Random(1), Maths()
    for _ in range(150):
        tenths = random.randint(0, 2000)
        gold, answer = f"{tenths / 10}%", f"{(tenths + random.choice([0, 0, 1, -10])) / 10}0{percent}"
        parsed = parse_expression(answer, limits)
        assert not isinstance(parsed, Reason)
        verdict = math_accuracy(gold_expression(make_row("open", "math", gold), limits), parsed)
        assert isinstance(verdict, Verdict)
        assert (verdict.value == 1) == verify(gold, answer), (gold, answer)


@pytest.mark.parametrize("letter", [*"ABCDEFGHINOabcdefghijkxyz", "(C)", "C."])
def test_exact_letter_verdicts_agree_with_math_verify(letter):
    limits = Maths()
    for other in ("5", "-0.5", "3/4", "25%", "B", "(x)", "e", "2.718281828459"):
        for gold, answer in ((letter, other), (other, letter)):
            parsed = parse_expression(answer, limits)
            assert not isinstance(parsed, Reason)
            verdict = math_accuracy(gold_expression(make_row("open", "math", gold), limits), parsed)
            if isinstance(verdict, Verdict):
                assert (verdict.value == 1) == verify(gold, answer), (gold, answer)


def pairs(draws: int) -> list[tuple[str, str, bool]]:
    """(gold, answer, whether they are equal), by construction, up to ten for each draw of numbers."""
    random = Random(2)
    made = []
    for _ in range(draws):
        a, b, c = (random.randint(2, 12) for _ in range(3))
        x, y = random.sample("xyz", 2)
        equal = [
            (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}"),
            (rf"\frac{{{a}}}{{\sqrt{{{b}}}}}", rf"\frac{{{a}\sqrt{{{b}}}}}{{{b}}}"),
            (f"{a}{x}+{b}", f"{b}+{a}{x}"),
            (f"({x}+{a})({x}-{a})", f"{x}^2-{a * a}"),
            (rf"{a}\pi", rf"\pi\cdot {a}"),
            (f"{a}, {a + b}", f"{a + b}, {a}"),
            (f"{a * c}", f"{x}={a * c}"),
            (f"{a * b}", rf"\boxed{{{a * b}}}"),
            (f"{a}^{{{b % 4 + 1}}}", f"{a ** (b % 4 + 1)}"),
        ]
        unequal = [
            (rf"{a}\sqrt{{{b}}}", f"{a}"),
            (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b + 1}}}"),
            (f"{a}{x}+{b}", f"{a}{y}+{b}"),
            (f"{a}{x}+{b}", f"{b}{x}+{a + b}"),
            (f"({a}, {a + b})", f"({a + b}, {a})"),
            (f"{a}", f"{a + c} or {a}"),
            (f"{a}", f"{a}, {a + c}, {a + 2 * c}"),
            (f"{a}", f"{a}{a}"),
            (f"{a * 11}", f"{a}"),
            (f"{a}", f"the sides are {a} and {a + b}"),
            (f"{x}={a}", f"{x}={a + b}"),
            (rf"\{{{a}, {a + c}\}}", f"{a}"),
        ]
        made += [(*pair, True) for pair in random.sample(equal, 4)] + [
            (*pair, False) for pair in random.sample(unequal, 6)
        ]
    return list(dict.fromkeys(made))


@pytest.mark.parametrize(
    ("draws", "least"), [pytest.param(20, 150, marks=pytest.mark.slow), pytest.param(75, 500, marks=pytest.mark.oracle)]
)
def test_no_false_accepts_beyond_those_of_math_verify(pool, draws, least):
    cases = pairs(draws)
    assert len(cases) >= least
    rows = [make_row("open", "math", gold) for gold, _, _ in cases]
    completions = [[Completion(f"<answer>{answer}</answer>")] for _, answer, _ in cases]
    ours = score_completions(rows, completions, pool=pool).parts["accuracy"][:, 0] == 1
    oracle = [verify(gold, answer) for gold, answer, _ in cases]
    labels = [equal for *_, equal in cases]
    false_accepts = {case for case, accepted, equal in zip(cases, ours, labels, strict=True) if accepted and not equal}
    oracle_false_accepts = {
        case for case, accepted, equal in zip(cases, oracle, labels, strict=True) if accepted and not equal
    }
    missed = {
        case
        for case, accepted, oracle_accepted, equal in zip(cases, ours, oracle, labels, strict=True)
        if equal and oracle_accepted and not accepted
    }
    print(
        f"{len(cases)} pairs, {sum(labels)} equal: false accepts {len(false_accepts)} (math-verify "
        f"{len(oracle_false_accepts)}), accepted {sum(ours)}, missed of what math-verify accepts {len(missed)}"
    )
    assert false_accepts <= oracle_false_accepts
    assert not missed
