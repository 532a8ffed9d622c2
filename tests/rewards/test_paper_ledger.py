import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEDGER = (ROOT / "docs" / "paper.md").read_text()


def test_the_ledger_lists_every_equation():
    assert re.findall(r"^\| (\d) \|", LEDGER, re.MULTILINE) == [str(n) for n in range(1, 10)]


def test_functions_and_tests_named_by_the_ledger_exist():
    functions = re.findall(r"`(rewards/\w+\.py): (\w+)`", LEDGER)
    tests = [
        (file, name) for cell in re.findall(r"`(test_\w+\.py: [^|\n]*)", LEDGER) for file, name in named_tests(cell)
    ]
    assert len(functions) >= 7
    assert len(tests) >= 9
    for file, name in functions:
        assert f"def {name}(" in (ROOT / "currreft_jax" / file).read_text()
    for file, name in tests:
        folder = next(parent for parent in Path(__file__).parents[:2] if (parent / file).exists())
        assert f"def {name}(" in (folder / file).read_text()


def named_tests(cell: str) -> list[tuple[str, str]]:
    file, _, names = cell.partition(": ")
    return [(file, name) for name in re.findall(r"\btest_\w+(?!\.py)\b(?!\.py)", names)]
