"""Scores against VLMEvalKit's own functions, from the wheels ms-vlmeval 0.0.20 (G2) and nvidia-vlmeval 26.3 (G1).

`make oracle-vlmeval` sets up their environments. No wheel has G3; `test_extraction` has it by hand.
"""

import json
import random
import subprocess
from collections import Counter, defaultdict
from pathlib import Path
from string import ascii_uppercase

import pytest

from currreft_jax.config import Extraction
from currreft_jax.evaluation.benchmarks.aggregates import circular_groups, decide_group, score_units, summarize
from currreft_jax.evaluation.benchmarks.extraction import infer_option
from currreft_jax.evaluation.benchmarks.items import AnswerType, BenchmarkItem, BenchmarkVerdict, Decision
from currreft_jax.evaluation.benchmarks.judge_prompts import UnreadableVerdict, read_grade_reply, read_pair_reply
from currreft_jax.evaluation.benchmarks.scorers import read_letter, score_choice, score_short_answer, score_substring
from currreft_jax.structs import Completion

pytestmark = pytest.mark.oracle

ROOT = Path(__file__).parents[3]
GENERATIONS = {"nvidia": Extraction.G1, "ms": Extraction.G2}
COUNT = 2500

OPTION_SETS = [
    *(["teddy bear", "rabbit", "cat", "dog"], ["yes", "no"], ["2", "3", "5", "7"], ["A", "B", "C", "D"]),
    *(["up", "down", "upwards"], ["the red cube", "the blue cube"], ["Paris", "Rome", "Oslo", "Bern", "Riga"]),
    *(["None of the above", "x > 3", "x < 3", "x = 3"], ["Zürich", "Genève"], ["12%", "1/2", "0.5", "50 cm"]),
]
# Family -> answers; L is a letter, T its option's text, M another letter, S another text.
FAMILIES = {
    "letter": ["L", "(L)", "L.", "[L]", " L\n", "**L**", "L:", r"\boxed{L}"],
    "letter and words": ["L of course", "L obviously", "{L}"],
    "letter and text": ["L. T", "(L) T", "L: T", "**L. T**"],
    "stated": ["The answer is L.", "Answer: L", "The correct answer is (L).", "The answer is **L**"],
    "lower-case letter": ["l", "(l)", "the answer is l"],
    "text": ["T", "T.", "t", "The answer is T."],
    "text in a sentence": ["It shows T there", "Because of T, I would say so", "T, not S"],
    "letter in a sentence": ["I would choose L here", "It is L because T is what one sees in the middle of it"],
    "letter after an article": ["A L", "A picture of T in a room", "A guess: L"],
    "several letters": ["L or M", "L, M", "L and not M", "Not M but L"],
    "first letter of many words": ["L is what I would say after looking at it for long", "L\nThis is why it is so."],
    "refusal": ["Cannot determine the answer", "Z", "I can't process this file.", "Sorry, I can't say"],
    "failed call": ["Failed to obtain answer via API. L", "Failed to obtain answer via API."],
    "tags": ["<answer>L</answer>", "<think> M? </think> <answer> L </answer>", "<think> M </think> L"],
    "nothing": ["", "I do not know", "?", "none", "E", "42"],
}
# Why our default reads some answers of a family otherwise.
DIFFERENCES = {
    "lower-case letter": "a small letter alone, or after 'the answer is', is read",
    "text": "an option's text is compared whole: parts of words do not count, and articles do not",
    "text in a sentence": "an option's text within a sentence may be a comparison or a doubt: left to the judge",
    "letter in a sentence": "a letter within a sentence is read after 'option', in brackets, or as what is stated",
    "letter after an article": "'A' before other words is no option, and the text that follows no answer",
    "several letters": "several letters are no choice, and a 'not' is not weighed",
    "first letter of many words": "a letter on a line of its own is read, whatever follows; one before words is not",
    "refusal": "a refusal is undecided and told; there it is the wrong letter Z",
    "failed call": "a failed call is no answer, and its text is not searched",
    "tags": "the answer is the content of <answer>, or what follows the thoughts",
    "letter and words": "a letter before other words may be an article or a name; braces do not mark an option",
    "nothing": "a text that is part of an option's word does not count",
}


def vlmeval(wheel, **cases):
    python = ROOT / f".venv-vlmeval-{wheel}" / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{python} is missing: run make oracle-vlmeval")
    script = Path(__file__).with_name("vlmeval_scores.py")
    done = subprocess.run([python, script], input=json.dumps(cases), capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def option_answers():
    """(family, answer, options), each once."""
    rng, cases = random.Random(0), {}
    while len(cases) < COUNT:
        options, family = rng.choice(OPTION_SETS), rng.choice(list(FAMILIES))
        first, second = rng.sample(range(len(options)), 2)
        names = {"L": ascii_uppercase[first], "M": ascii_uppercase[second], "T": options[first], "S": options[second]}
        names |= {"l": ascii_uppercase[first].lower(), "t": options[first].lower()}
        words = rng.choice(FAMILIES[family])
        filled = "".join(names.get(c, c) if _alone(words, k) else c for k, c in enumerate(words))
        padded = rng.choice(["", "", " ", "\n"]) + filled + rng.choice(["", "", "!", " \n", "!\n"])
        cases[padded, tuple(options)] = family
        if len(cases) == COUNT:
            break
    return [(family, answer, list(options)) for (answer, options), family in cases.items()]


def _alone(words, k):
    """Whether no letter or apostrophe stands beside the k-th character."""
    around = words[max(0, k - 1) : k] + words[k + 1 : k + 2]
    return not any(c.isalpha() or c == "'" for c in around)


@pytest.mark.parametrize("wheel", GENERATIONS)
def test_options_are_read_as_by_vlmevalkit(wheel):
    cases = option_answers()
    found = vlmeval(wheel, options=[[answer, options] for _, answer, options in cases])["options"]
    ours = [infer_option(answer, options, GENERATIONS[wheel]) for _, answer, options in cases]
    assert [case for case, one, other in zip(cases, ours, found, strict=True) if one != other] == []


@pytest.mark.parametrize("wheel", GENERATIONS)
def test_our_own_reading_differs_where_a_reason_is_given(wheel):
    differing, counts = set(), Counter()
    for family, answer, options in option_answers():
        item = BenchmarkItem("1", "f:1", "q", "q", ("A",), AnswerType.CHOICE, tuple(options))
        ours = read_letter(item, Completion(answer), Extraction.READABLE)
        theirs = infer_option(answer, options, GENERATIONS[wheel])
        kind = "same" if ours == theirs else "ours" if theirs is None else "theirs" if ours is None else "other"
        counts[family, kind] += 1
        differing |= {family} if kind != "same" else set()
    assert differing <= DIFFERENCES.keys(), counts


NUMBERS = ["0", "14", "-5", "3", "100", "1.2", "0.5", "-2.75", "1e3", "14.0", "007"]
WORDS = ["{}", " {} ", "{}.", "The answer is {}", "about {} cm", "{}\n", "+{}", "{}%", "x", "", "{} or 7", "nan", "1_4"]


def short_answer_cases():
    rng, cases = random.Random(1), []
    for _ in range(COUNT):
        kind = rng.choice(["choice", "integer", "float", "text", "list"])
        options = rng.choice(OPTION_SETS)
        gold = rng.choice(NUMBERS)
        line = {"question_type": "free_form", "answer_type": kind, "choices": "", "answer_option": ""}
        answer = rng.choice(WORDS).format(rng.choice([gold, gold, rng.choice(NUMBERS)]))
        if kind == "choice":
            _, answer, options = rng.choice(CHOICES)
            gold = rng.choice(options)
            letter = ascii_uppercase[options.index(gold)]
            line |= {"question_type": "multi_choice", "choices": repr(options), "answer_option": letter}
        elif kind == "list":
            gold = f"[{gold}, {rng.choice(NUMBERS)}]".replace("007", "7")
            answer = rng.choice([gold, answer])
        cases.append(line | {"question": "q", "prediction": answer, "answer": gold})
    return cases


CHOICES = option_answers()


def item_of(key, line, categories=()):
    if line["question_type"] == "multi_choice":
        options = tuple(eval(line["choices"]))
        return BenchmarkItem(
            *(key, "f:1", "q", "q", (line["answer_option"],), AnswerType.CHOICE, options, categories), group=key
        )
    return BenchmarkItem(
        *(key, "f:1", "q", "q", (line["answer"],), AnswerType(line["answer_type"]), (), categories), group=key
    )


@pytest.mark.parametrize("wheel", GENERATIONS)
def test_short_answers_are_scored_as_by_vlmevalkit_without_a_judge(wheel):
    cases = short_answer_cases()
    rng = random.Random(2)
    tasks = [rng.choice(["geometry", "word problem"]) for _ in cases]
    skills = [rng.sample(["logical", "numeric", "algebraic"], rng.randint(1, 3)) for _ in cases]
    lines = [c | {"task": t, "skills": repr(s)} for c, t, s in zip(cases, tasks, skills, strict=True)]
    found = vlmeval(wheel, short_answers=cases, short_answer_table=lines)
    items = [item_of(str(k), line, (tasks[k], *skills[k])) for k, line in enumerate(cases)]
    verdicts = {
        item.key: score_short_answer(item, Completion(line["prediction"]), GENERATIONS[wheel])
        for item, line in zip(items, cases, strict=True)
    }
    ours = [None if (score := verdicts[item.key].score) is None else score == 1 for item in items]
    differing = [case for case, one, other in zip(cases, ours, found["short_answers"], strict=True) if one != other]
    assert differing == []
    assert {True, False, None} == set(ours)
    scores = summarize(score_units(items, verdicts, {item.key: "" for item in items}))
    table = {score.name.replace("overall", "Overall"): 100 * score.score for score in scores}
    assert table == pytest.approx(found["short_answer_table"])


CATEGORIES = ["Regular Text Recognition", "Doc-oriented VQA", "Handwritten Mathematical Expression Recognition"]


@pytest.mark.parametrize("wheel", GENERATIONS)
def test_substrings_hit_as_by_vlmevalkit(wheel):
    rng = random.Random(3)
    pieces = ["CENTRE", "centre", "x ^ 2", "x^2", "42", "Straße", "\n", " ", "é", "", "İ", "a b", "A", "12.50"]
    cases = []
    for _ in range(COUNT):
        golds = ["".join(rng.choices(pieces, k=rng.randint(1, 3))) for _ in range(rng.randint(1, 3))]
        golds = [gold for gold in golds if gold.strip()] or ["42"]
        answer = "".join(rng.choices([*pieces, *golds], k=rng.randint(0, 4)))
        cases.append({"prediction": answer, "answer": repr(golds), "category": rng.choice(CATEGORIES)})
    found = vlmeval(wheel, substrings=cases)["substrings"]
    ours = []
    for line in cases:
        item = BenchmarkItem(
            *("1", "f:1", "q", "q", tuple(eval(line["answer"]))), case_sensitive=line["category"] == CATEGORIES[2]
        )
        ours.append(score_substring(item, Completion(line["prediction"]), GENERATIONS[wheel]).score)
    assert [case for case, one, other in zip(cases, ours, found, strict=True) if one != other] == []
    assert 0.1 < sum(ours) / len(ours) < 0.9


@pytest.mark.parametrize("wheel", GENERATIONS)
def test_circular_groups_hit_as_by_vlmevalkit_by_exact_matching(wheel):
    rng, rows = random.Random(4), []
    for group in range(700):
        options = rng.choice([options for options in OPTION_SETS if len(options) == 4])
        gold = rng.randrange(4)
        for turn in range(4):
            turned = [options[(k + turn) % 4] for k in range(4)]
            right = ascii_uppercase[(gold - turn) % 4]
            answer = rng.choice([right] * 12 + [f"({right})", "unclear", rng.choice("ABCD")])
            row = {"index": group + turn * 1_000_000, "question": "q", "answer": right, "prediction": answer}
            rows.append(row | dict(zip("ABCD", turned, strict=True)))
    found = vlmeval(wheel, circular=[rows])["circular"][0]
    items = [
        BenchmarkItem(
            *(str(row["index"]), "f:1", "q", "q", (row["answer"],), AnswerType.CHOICE),
            *(tuple(row[letter] for letter in "ABCD"), ()),
            group=str(row["index"] % 1_000_000),
        )
        for row in rows
    ]
    verdicts = {
        item.key: score_choice(item, Completion(row["prediction"]), GENERATIONS[wheel])
        for item, row in zip(items, rows, strict=True)
    }
    ours = {
        group[0].group: int(decide_group([verdicts[item.key] for item in group])[0] or 0)
        for group in circular_groups(items)
    }
    assert ours == found and 0.1 < sum(ours.values()) / len(ours) < 0.9


def read_or_none(read, reply):
    try:
        return read(reply)
    except UnreadableVerdict:
        return None


GRADES = {
    "number": ["0.{d}", "0.{d}{d}", "1.0", "0", "1", " 0.{d}\n", "0.{d}  ", "+0.{d}", ".{d}", "1."],
    "beyond": ["{d}{d}.5", "-0.{d}5", "1.{d}1", "100"],
    "words": ["", "good", "Correctness:", "none", "x0.{d}"],
    # Ours reads these, theirs asks again, and gives 0.0 after five times.
    "explained": ["Correctness: 0.{d}", "0.{d} because it is so", "Grade 0.{d}, I think", "<think> hm </think> 0.{d}"],
    # Theirs reads these as numbers.
    "not a number": ["nan", "NaN"],
    "scientific": ["1e-{d}"],
}


@pytest.mark.parametrize("wheel", GENERATIONS)
def test_grades_are_read_as_by_vlmevalkit(wheel):
    rng = random.Random(5)
    cases = []
    for _ in range(COUNT):
        family = rng.choice(list(GRADES))
        template = rng.choice(GRADES[family])
        cases.append((family, "".join(str(rng.randrange(10)) if p == "{d}" else p for p in _pieces(template))))
    found = vlmeval(wheel, grades=[reply for _, reply in cases])["grades"]
    differing = defaultdict(set)
    for (family, reply), theirs in zip(cases, found, strict=True):
        ours = read_or_none(read_grade_reply, reply)
        if ours != theirs:
            differing[family].add((ours is None, theirs is None))
    assert dict(differing) == {
        "explained": {(False, True)},
        "not a number": {(True, False)},
        "scientific": {(True, False)},
    }


def _pieces(template):
    head, *rest = template.split("{d}")
    return [head, *(piece for part in rest for piece in ("{d}", part))]


PAIRS = {
    "two numbers": ["{d} {d}", "{d}.5 {d}", "10 {d}\nBecause.", "{d},{d}", "{d} {d}\nAssistant 2 is better."],
    "other numbers": ["{d}", "{d} {d} {d}", "", "both are good", "{d}/10 {d}/10"],
    "explained": ["{d}, {d}", "{d} {d} ", "Score: {d} {d}", "{d}  {d}", "<think> hm\n</think>\n{d} {d}"],
    "beyond": ["0 {d}", "11 {d}", "{d} 70"],
    "not a number": ["nan {d}"],
}


@pytest.mark.parametrize("wheel", GENERATIONS)
def test_pairs_are_read_as_by_vlmevalkit(wheel):
    rng = random.Random(6)
    cases = []
    for _ in range(COUNT):
        family = rng.choice(list(PAIRS))
        template = rng.choice(PAIRS[family])
        cases.append((family, "".join(str(rng.randrange(1, 10)) if p == "{d}" else p for p in _pieces(template))))
    found = vlmeval(wheel, pairs=[reply for _, reply in cases])["pairs"]
    differing = defaultdict(set)
    for (family, reply), theirs in zip(cases, found, strict=True):
        ours = read_or_none(read_pair_reply, reply)
        failed = theirs == [-1, -1]
        if (ours is None) != failed or (ours is not None and list(ours) != theirs):
            differing[family].add((ours is None, failed))
    assert dict(differing) == {
        "explained": {(False, True)},  # theirs averages -1 in
        "beyond": {(True, False)},
        "not a number": {(True, False)},
    }


@pytest.mark.parametrize("wheel", GENERATIONS)
def test_aggregates_are_vlmevalkits(wheel):
    rng = random.Random(7)
    items, choices, graded, paired = [], [], [], []
    combinations = ["rec,ocr", "ocr,spat,math", "know,gen,rec", "rec,know,gen,spat", "rec"]
    for k in range(400):
        combination, category = rng.choice(combinations), rng.choice(["conv", "detail", "complex"])
        score, reference, hit = rng.randrange(11) / 10, rng.randint(1, 10) / 10, rng.randrange(2)
        choices.append({"hit": hit, "category": category, "l2-category": f"group {k % 3}"})
        graded.append({"category": combination, "score": score})
        paired.append({"category": category, "score": 10 * score, "gpt4_score": 10 * reference})
        items.append((combination, category, f"group {k % 3}", hit, score, reference))

    def scores(categories_of, verdict_of):
        rows = [BenchmarkItem(str(k), "f", "q", "q", ("a",), group=str(k), categories=categories_of(one))
                for k, one in enumerate(items)]  # fmt: skip
        verdicts = {str(k): verdict_of(str(k), one) for k, one in enumerate(items)}
        return {one.name: one for one in summarize(score_units(rows, verdicts, {row.key: "" for row in rows}))}

    def verdict(key, score, reference=None):
        return BenchmarkVerdict(key, score, Decision.JUDGE, reference=reference)

    found = vlmeval(wheel, accuracies=choices, grade_table=graded, pair_table=paired)
    ours = scores(lambda one: one[1:3], lambda key, one: verdict(key, float(one[3])))
    assert {name.replace("overall", "Overall"): one.score for name, one in ours.items()} == pytest.approx(
        found["accuracies"]
    )
    ours = scores(lambda one: (one[1],), lambda key, one: verdict(key, one[4], one[5]))
    table = {name: [100 * one.relative, 100 * one.score, 100 * one.reference] for name, one in ours.items()}
    assert table.keys() == found["pair_table"].keys()
    for name, row in table.items():
        assert row == pytest.approx(found["pair_table"][name])
    ours = scores(
        lambda one: (*one[0].split(","), f"only {one[0]}" if one[0] == "rec" else one[0]),
        lambda key, one: verdict(key, one[4]),
    )
    skills, combined = found["grade_table"]
    for name, value in {**skills, **combined}.items():
        if name != "rec":  # rows of this capability alone are counted twice there, as it and as a combination
            assert 100 * ours[name.replace("_", ",").replace("Overall", "overall")].score == pytest.approx(value)
    assert 100 * ours["rec"].score != pytest.approx(skills["rec"])
