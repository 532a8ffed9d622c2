"""Pages of docs/: settings, metrics, reasons and messages that they name exist; links lead somewhere; lines fit."""

import ast
import re
from pathlib import Path

import pytest

from configs import curriculum
from configs import eval as eval_config
from currreft_jax.config import Config, Stage
from currreft_jax.config.names import setting_type
from currreft_jax.data import world_rows
from currreft_jax.data.mixture import sample_indices
from currreft_jax.evaluation.held_out import spread
from currreft_jax.structs import Reason
from currreft_jax.world.questions import TASKS
from tests.documented import PAGES, ROOT

DOCS = ROOT / "docs"
GROUPS = ("data", "grpo", "logging", "mesh", "model", "optimizer", "rewards", "sampling")
SETTING = re.compile(rf"`((?:{'|'.join(GROUPS)})(?:\.[a-z_0-9]+)+)(?:=[^`]*)?`")
WIDTH = 124


def text_of(page: str) -> str:
    return (DOCS / page).read_text("utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["metrics.md", "troubleshooting.md", "method.md", "commands.md"])
def test_the_settings_that_a_page_names_exist(page):
    named = set(SETTING.findall(text_of(page)))
    config = Config(stages=[Stage()])
    assert named
    for path in named:
        setting_type(config, path)


def test_the_settings_of_stages_that_the_pages_name_are_the_curriculums():
    text = "".join(page.read_text("utf-8") for page in PAGES)
    named = set(re.findall(r"--config\.(stages\[\d\](?:\.[a-z_]+)+)=", text))
    assert len(named) > 4
    for path in named:
        setting_type(curriculum.get_config("tiny"), path)


def test_every_link_to_a_heading_leads_to_one():
    for page in PAGES:
        for file, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text("utf-8")):
            target = page.parent / file if file else page
            if not file.startswith("http") and target.suffix == ".md" and target.exists():
                assert anchor in anchors(target), f"{page.name}: {file}#{anchor}"


def test_every_metric_has_a_meaning_and_what_is_healthy():
    rows = re.findall(
        r"^\| (`.*) \|$", text_of("metrics.md").partition("## One by one")[2].partition("## Reasons")[0], re.M
    )
    cells = [[cell.strip() for cell in re.split(r" \|", row)] for row in rows]
    assert len(cells) > 35
    for name, meaning, healthy, _ in (row for row in cells if row[0] not in NOT_JUDGED):
        assert meaning and healthy, name


NOT_JUDGED = ("`stage`, `step`", "`num_step_tokens`", "`num_completion_tokens`", "`time/evaluate`")


def test_every_reason_is_explained():
    explained = re.findall(
        r"`(\w+)`", "".join(re.findall(r"^\| (`[\w`, ]+`) \|", text_of("metrics.md").partition("## Reasons")[2], re.M))
    )
    assert set(explained) == {reason.value for reason in Reason}


@pytest.mark.parametrize("stage_index", [0, 1, 2])
def test_the_demo_and_the_evaluation_share_the_rows_that_docs_results_says(stage_index):
    config = curriculum.get_config("tiny")
    (held_out,) = config.stages[stage_index].held_out
    (evaluated,) = (
        source
        for suite in eval_config.get_config("tiny").suites
        for source in suite.sources
        if source.file == held_out.file
    )
    num_rows = len(TASKS) * world_rows.SIZES.test
    indices = [sample_indices(num_rows, source.sample, config.seed, source.file) for source in (held_out, evaluated)]
    demo, evaluation = set(spread(indices[0], config.logging.evaluate_rows)), set(indices[1])
    sizes = f"the demo takes {len(demo)} of the {num_rows:,} rows of each kind"
    assert sizes in " ".join(text_of("results.md").split())
    shared = f"the evaluation the first {len(evaluation)}; {len(demo & evaluation)} are in both"
    assert shared in " ".join(text_of("results.md").split())


def messages() -> list[list[str]]:
    """The fixed parts of every line of every text of the package, in their order; values stand between them."""
    texts = []
    for file in [*(ROOT / "currreft_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")]:
        nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
        joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
        inner = {part for node in joined for part in node.values}
        texts += [[part.value for part in node.values if isinstance(part, ast.Constant)] for node in joined]
        texts += [[node.value] for node in nodes if isinstance(node, ast.Constant) and node not in inner]
    # A value between two parts is written as one character, which no text has.
    lines = [line for parts in texts for line in "\0".join(map(str, parts)).splitlines()]
    return [line.split("\0") for line in lines if len(line) > 9]


def without_message(line: str, parts: list[str]) -> str:
    """A line with the parts of a message blanked out, if it holds them in their order."""
    place, blank = 0, line
    for part in parts:
        place = line.find(part, place)
        if place < 0:
            return line
        blank = blank[:place] + "\0" * len(part) + blank[place + len(part) :]
        place += len(part)
    return blank


def test_the_messages_that_troubleshooting_quotes_are_the_programs():
    quoted = re.findall(r"```text\n(.*?)```", text_of("troubleshooting.md"), re.S)
    lines = [line for block in quoted for line in block.splitlines() if not re.match(r"\w+ {3,}", line)]
    assert len(lines) > 8
    whole = "\n".join(lines)
    texts = [parts for parts in messages() if all(part in whole for part in parts)]
    for line in lines:
        rest = line
        for parts in texts:
            if (blank := without_message(line, parts)) is not line:
                rest = "".join(map(min, rest, blank))
        words = re.search(r"(?:[a-z]{2,}[ ,;]+){3,}[a-z]{2,}", rest)
        assert not words, f"no text of the package has {words and words[0]!r}: {line}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_lines_fit(page):
    fenced = False
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        table_or_picture = line.lstrip().startswith(("|", "!["))
        assert fenced or table_or_picture or len(line) <= WIDTH, f"{page.name}:{number}: {len(line)} characters"
