"""The report in headless Chromium: drawing, clicks, keys, and hostile text."""

import io
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from currreft_jax.evaluation.measurement import Measurement
from currreft_jax.report.comparisons import answer_folders, read_evaluated_models
from currreft_jax.report.page import render_comparison, render_page, render_rejection
from currreft_jax.report.rejections import is_rejection, read_rejection
from currreft_jax.report.runs import read_run
from currreft_jax.training.curriculum import ForgettingMatrix
from tests.report.evaluations import detection_answer, write_answers, write_detection_rows, write_evaluation
from tests.report.jobs import write_job
from tests.report.test_report import HOSTILE
from tests.report.workdirs import (
    completion_record,
    detection_row,
    held_out_answer,
    metric_lines,
    rollout_row,
    write_image,
    write_lines,
    write_run,
)
from tools import report_picture

pytestmark = pytest.mark.browser
GREEN, ORANGE, VIOLET = np.array([7, 135, 90]), np.array([212, 66, 10]), np.array([107, 47, 196])


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "no Chromium: install it (on Debian: apt install chromium), or set CHROMIUM to its path"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, tmp_path):
    """Opens a workdir's report offline; console messages, errors and requests fail the test."""
    pages, problems = [], []

    def open_report(workdir: Path, *others: Path, **settings):
        file = tmp_path / "page.html"
        if answer_folders(workdir):
            text, _ = render_comparison(read_evaluated_models([workdir, *others]))
        elif is_rejection(workdir):
            text, _ = render_rejection(read_rejection(workdir))
        else:
            text, _ = render_page(read_run(workdir), [read_run(other) for other in others])
        file.write_text(text, "utf-8")
        page = chromium.new_page(**{"viewport": {"width": 1300, "height": 900}, **settings})
        page.context.set_offline(True)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda sent: None if sent.url.startswith(("file:", "data:")) else problems.append(sent.url))
        page.goto(file.as_uri())
        pages.append(page)
        return page

    yield open_report
    for page in pages:
        page.close()
    assert not problems


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    """Two stages with completions of several tasks and all kinds, and a forgetting matrix."""
    folder = write_run(tmp_path_factory.mktemp("run") / "made", stages=("one", "two"))
    image = write_image(folder / "a.png")
    kinds = ("judge", "choice", "open")
    for number, stage in enumerate(("one", "two")):
        rows = [rollout_row(k, image, kind=kinds[k % 3], task=("math", "classify")[k % 2]) for k in range(12)]
        rows += [detection_row(20, image, [21, 21, 63, 63], [10, 100, 60, 150])]
        write_lines(folder / stage / "rollouts" / "1.jsonl", rows)
        late = [
            rollout_row(30 + k, image, completions=[completion_record("<answer> maybe </answer>", 0.25 * number)])
            for k in range(3)
        ]
        write_lines(folder / stage / "rollouts" / "20.jsonl", late)
    matrix = ForgettingMatrix(folder / "curriculum.json", writes=True)
    for stage, step, reward in (("", 0, 1.0), ("one", 20, 1.5), ("two", 20, 1.2)):
        matrix.add([Measurement(stage, step, "one", 100, reward, 0.01, 0.5, 0.9, 40, reward)])
    return folder


def num_shown(page) -> int:
    return int(page.locator("#count").inner_text().split(" ")[0])


def until(page, expression: str) -> None:
    """Waits until an expression is true; the page's policy forbids Playwright's own waiting."""
    for _ in range(100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


def pixels(locator) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB")).astype(int)


def test_every_section_is_drawn(opened, workdir):
    page = opened(workdir)
    assert page.locator("main > section").count() == 8
    titles = page.locator(".chart h4").all_inner_texts()
    assert any(title.startswith("Reward") for title in titles) and any(title.startswith("KL") for title in titles)
    page.locator("#curves").scroll_into_view_if_needed()
    until(page, "document.querySelectorAll('.chart .line').length > 4")
    assert page.locator(".chart").first.locator(".bound").count() == 1
    assert page.locator(".matrix td").all_inner_texts()[1].startswith("1.500")
    assert "▼ from 1.500" in page.locator(".matrix").inner_text()
    page.get_by_role("button", name="Format", exact=True).click()
    assert page.locator(".matrix td b").first.inner_text() == "0.900"
    page.get_by_role("button", name="Open or close all").click()
    assert page.get_by_text("learning_rate").first.is_visible()


def test_the_overview_says_what_its_numbers_are_and_a_short_stage_keeps_its_name(opened, tmp_path):
    folder = write_run(tmp_path / "run", stages=("stage1", "stage2", "self_improve"), steps=80)
    write_lines(folder / "self_improve" / "metrics.jsonl", metric_lines(12, "self_improve", loss=lambda step: 1 / step))
    page = opened(folder)
    note = page.locator("#overview .note").inner_text()
    assert "A completion's reward is accuracy + format, at most 2." in note and "Supervised stages have a loss" in note
    assert "KL is how far the model has moved from its reference" in note
    assert "The number beside a name is the last smoothed value" in page.locator("#curves > .note").inner_text()
    chart = page.locator("#curves .chart").first
    chart.scroll_into_view_if_needed()
    until(page, "document.querySelectorAll('#curves .chart .bound').length > 0")
    assert [text for text in chart.locator(".axis").all_text_contents() if text[0] == "s"] == [
        "stage1",
        "stage2",
        "self_improve",
    ]


def test_pointer_and_keyboard_show_the_values_of_a_step(opened, workdir):
    page = opened(workdir)
    page.locator("#smoothing").fill("0")
    chart = page.locator(".chart").first
    chart.scroll_into_view_if_needed()
    chart.locator("svg").focus()
    page.keyboard.press("Home")
    until(page, "document.querySelector('.chart small').textContent === 'one, step 1'")
    assert chart.locator(".legend").inner_text().split() == ["all", "0.05", "math", "0.025"]
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('.chart small').textContent === 'two, step 1'")
    assert "two, step 1: all 0.05" in chart.locator("svg").get_attribute("aria-label")
    box = chart.locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 10, box["y"] + 50)
    until(page, "document.querySelector('.chart small').textContent === 'two, step 20'")


def test_filters_select_groups(opened, workdir):
    page = opened(workdir)
    assert num_shown(page) == 32
    assert page.locator(".card").count() == 10
    assert "its advantage: how much better it is than" in page.locator("#rollouts .note").inner_text()
    page.locator("[data-value=two]").click()
    assert num_shown(page) == 16
    page.locator("[data-value=open]").click()
    assert num_shown(page) == 5
    page.locator("[data-value=detection]").click()
    assert num_shown(page) == 1 and page.locator(".card").inner_text().startswith("two · step 1")
    page.get_by_role("button", name="Clear").click()
    assert num_shown(page) == 32 and page.locator("[aria-pressed=true].chip").count() == 0
    page.get_by_label("Step from").fill("2")
    assert num_shown(page) == 6
    page.get_by_label("Reward to").fill("0.2")
    assert num_shown(page) == 3 and page.locator(".card").first.inner_text().startswith("one · step 20")
    page.get_by_role("button", name="Clear").click()
    page.locator("select[data-key=reason]").select_option("=not_equal")
    assert num_shown(page) == 27
    assert page.locator(".card").first.locator(".completion.dim").count() == 1
    page.get_by_placeholder("in prompt or completion").fill("MAYBE")
    assert num_shown(page) == 3
    page.get_by_placeholder("in prompt or completion").fill("nobody says this")
    assert page.get_by_text("No group matches the filters.").is_visible()


def test_paging(opened, workdir):
    page = opened(workdir)
    first = page.locator(".card").first.get_attribute("aria-label")
    for shown in ("11–20", "21–30", "31–32"):
        page.get_by_role("button", name="Next →").first.click()
        assert shown in page.locator(".pager").first.inner_text()
    assert page.locator(".card").count() == 2
    assert page.get_by_role("button", name="Next →").first.is_disabled()
    page.locator("select[data-key=order]").select_option("spread")
    assert page.locator(".card").count() == 10
    assert first in page.locator(".card").first.get_attribute("aria-label")


def test_the_keyboard_moves_through_cards_completions_and_tokens(opened, workdir):
    page = opened(workdir)
    page.locator("#cards .card").first.focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement === document.querySelectorAll('.card')[1]")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowDown")
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label == "completion 2, reward 0, advantage −0.50: <answer> no </answer>"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    token = page.locator("#token").inner_text()
    assert token == '" no"log-prob −0.25 · reference −0.75 · log-ratio +0.500 · entropy 0.5'
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.querySelectorAll('.card')[1]")
    assert page.locator("#token").is_hidden()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    command = page.locator(".card").nth(1).locator(".command").inner_text()
    assert command.startswith("python -m currreft_jax.generate --replay=") and command.endswith(
        "/one/rollouts/1.jsonl:2:1"
    )


def test_answers_before_and_after_have_boxes_of_their_own_and_say_how_many_changed(opened, workdir, tmp_path):
    folder = shutil.copytree(workdir, tmp_path / "run")
    where = {
        "task": "detection",
        "kind": "open",
        "image": str(folder / "a.png"),
        "frame": [84, 84],
        "resized": [168, 168],
    }
    where |= {"problem": "where is it?", "solution": "[21, 21, 63, 63]"}
    texts = {("one", 0): "[10, 100, 60, 150]", ("one", 20): "[100, 20, 150, 60]"}
    for (stage, step), box in texts.items():
        answers = [held_out_answer(0, step / 20, text=f"<think> a </think> <answer> {box} </answer>", **where)]
        answers += [held_out_answer(index, (index - step / 20) / 3) for index in (1, 2)] + [held_out_answer(3, 1.0)]
        write_lines(folder / stage / "held_out" / f"{step}.jsonl", answers)
    page = opened(folder)
    assert page.locator("nav a").nth(1).inner_text() == "Before and after"
    assert page.locator("#before-after .tools").inner_text() == "Rows of one"
    assert "risen for 1, fallen for 2, and is the same for 1." in page.locator("#before-after .note").inner_text()
    card = page.locator("#before-after .card").first
    assert "▲ improved, +1.00" in card.inner_text() and "[21, 21, 63, 63]" in card.locator(".answer").inner_text()
    assert page.locator("#before-after .card").nth(1).inner_text().count("▼ worsened, −0.33") == 1
    assert card.locator("figcaption").inner_text().split() == ["gold", "before", "after"]
    boxes = card.locator("svg rect.box")
    found = {
        name: boxes.nth(i).evaluate("(box) => [getComputedStyle(box).stroke, getComputedStyle(box).strokeDasharray]")
        for i, name in enumerate(("gold", "before", "after"))
    }
    assert found["gold"] == ["rgb(7, 135, 90)", "none"]
    assert found["before"] == ["rgb(107, 47, 196)", "9px, 3px, 2px, 3px"]
    assert found["after"] == ["rgb(212, 66, 10)", "7px, 4px"]
    image = card.locator(".image")
    image.scroll_into_view_if_needed()
    near, along = colours_near(image), np.linspace(100 / 168 + 0.02, 150 / 168 - 0.1, 40)
    assert np.mean([near(x, y, VIOLET) for y in along for x in (10 / 168, 60 / 168)]) > 0.8
    assert np.mean([near(x, y, ORANGE) for x in along for y in (20 / 168, 60 / 168)]) > 0.8


def test_a_page_without_answers_before_training_says_why(opened, workdir):
    page = opened(workdir)
    assert page.locator("#before-after").count() == 0
    assert "no answers to held-out rows were recorded before" in page.locator("#overview .note").inner_text()


KEYS_OF_CHARTS = """
Object.fromEntries([...document.querySelectorAll(".chart header")].reverse().map((header) => {
  const keys = [...header.querySelectorAll(".keys span")].map((key) => key.textContent);
  return [header.querySelector("h4").firstChild.textContent, keys];
}))
"""


def test_charts_name_the_metrics_that_they_show(opened, workdir, tmp_path):
    page = opened(workdir)
    keys = page.evaluate(KEYS_OF_CHARTS)
    assert keys["Reward"] == ["reward", "reward/TASK"] and keys["Reward components"] == ["rewards/NAME/mean"]
    assert keys["Time"] == ["step_time"] and keys["Accuracy"] == ["rewards/accuracy/mean"]
    assert keys["All stages"] == ["held_out/STAGE/pass"]
    page = opened(workdir, write_run(tmp_path / "other", stages=("one", "two")))
    assert page.locator(".chart .keys").all_inner_texts()[:2] == ["reward", "reward/math"]


def test_tokens_are_shaded_by_the_selected_value(opened, workdir):
    page = opened(workdir)
    colours = "[...document.querySelectorAll('.completion .text span')].map(span => span.style.backgroundColor)"
    by_ratio = page.evaluate(colours)
    assert all("--accent" in colour for colour in by_ratio)
    page.get_by_role("button", name="Entropy", exact=True).click()
    assert all("--s4" in colour for colour in page.evaluate(colours))
    page.get_by_role("button", name="None", exact=True).click()
    assert not any(page.evaluate(colours))


def test_boxes_are_drawn_at_their_coordinates(opened, workdir):
    page = opened(workdir)
    page.locator("[data-value=detection]").first.click()
    image = page.locator(".image").first
    image.scroll_into_view_if_needed()
    page.mouse.move(0, 0)
    near = colours_near(image)
    along = np.linspace(0.3, 0.7, 30)
    gold = [near(x, y, GREEN) for t in along for x, y in ((0.25, t), (0.75, t), (t, 0.25), (t, 0.75))]
    assert np.mean(gold) > 0.95  # (21, 21, 63, 63) of 84, in one line that the dashes cross
    assert 0.4 < np.mean(dashes_of_a_wrong_box(near)) < 1  # in dashes
    assert not any(near(0.5, y, colour) for y in (0.4, 0.6) for colour in (GREEN, ORANGE))


def colours_near(image):
    """Returns a function that is true if a colour is within two pixels of a point, in fractions of the image's side."""
    shot = pixels(image)
    side = shot.shape[0]
    assert abs(shot.shape[0] - shot.shape[1]) <= 1

    def near(x, y, colour):
        x, y = round(x * side), round(y * side)
        part = shot[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].reshape(-1, 3)
        return bool((np.abs(part - colour).max(axis=1) < 30).any())

    return near


def dashes_of_a_wrong_box(near) -> list[bool]:
    """Looks along the upright sides of the box (10, 100, 60, 150) of 168 x 168 pixels."""
    along = np.linspace(100 / 168 + 0.02, 150 / 168 - 0.06, 40)
    return [near(x, y, ORANGE) for y in along for x in (10 / 168, 60 / 168)]


def test_hostile_text_stays_text(opened, tmp_path):
    folder = write_run(tmp_path / "run", name=HOSTILE)
    config = json.loads((folder / "config.json").read_text())
    config["stages"][0]["name"] = HOSTILE
    config[HOSTILE] = HOSTILE
    (folder / "config.json").write_text(json.dumps(config))
    write_lines(folder / "metrics.jsonl", metric_lines(5, **{HOSTILE: float, f"reward/{HOSTILE}": float}))
    answer = completion_record(HOSTILE, reasons={HOSTILE: HOSTILE}, parts={HOSTILE: 1.0})
    image = write_image(tmp_path / "'><img src=x>.png")
    hostile = [rollout_row(1, image, id=HOSTILE, prompt=HOSTILE, solution=HOSTILE, completions=[answer, answer])]
    hostile += [rollout_row(2, tmp_path / f"{HOSTILE[:20].replace('/', '_')}.png", id=HOSTILE)]
    write_lines(folder / "rollouts" / "1.jsonl", hostile)
    ForgettingMatrix(folder / "curriculum.json", writes=True).add(
        [Measurement(HOSTILE, 1, HOSTILE, 9, 1, 0.1, 0.5, 0.5, 4)]
    )
    for step in (0, 5):
        answers = [
            held_out_answer(1, float(step), HOSTILE, id=HOSTILE, problem=HOSTILE, solution=HOSTILE, text=HOSTILE)
        ]
        write_lines(folder / "held_out" / f"{step}.jsonl", answers)
    page = opened(folder)
    assert (
        page.locator("#before-after .text").first.inner_text().startswith("</script><script>window.hacked = 1</script>")
    )
    page.locator(".completion .text span").first.hover()
    page.locator(".completion button").first.click()
    page.locator("#curves svg").first.focus()
    page.keyboard.press("Home")
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 2 and page.locator("img").count() == 1
    assert (
        page.locator(".completion .text").first.inner_text().startswith("</script><script>window.hacked = 1</script>")
    )
    assert HOSTILE[:40] in page.locator(".completion .reason").first.inner_text()


def test_runs_are_overlaid_with_a_legend(opened, workdir, tmp_path):
    other = write_run(tmp_path / "other", stages=("one", "two"), steps=30, seed=7)
    page = opened(workdir, other)
    assert page.locator(".legend.runs span").all_inner_texts() == ["made", "other"]
    chart = page.locator(".chart").first
    chart.scroll_into_view_if_needed()
    until(page, "document.querySelectorAll('.chart .line').length > 3")
    assert chart.locator(".legend").inner_text().split()[::2] == ["made", "other"]
    assert chart.locator("g.d1 .line").count() == 2  # dashed, and in both stages
    differing = page.locator("#settings details").first
    assert "seed\t0\t7" in differing.inner_text()


def test_dark_mode_follows_the_system_and_the_button(opened, workdir):
    page = opened(workdir, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(ground) == "rgb(19, 21, 24)"
    button = page.locator("#theme")
    button.click()
    assert button.inner_text() == "Theme: light" and page.evaluate(ground) == "rgb(250, 249, 247)"
    button.click()
    assert page.evaluate(ground) == "rgb(19, 21, 24)"


@pytest.mark.parametrize("width", [360, 800])
def test_a_narrow_page_does_not_scroll_sideways(opened, workdir, width):
    page = opened(workdir, viewport={"width": width, "height": 800})
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    assert page.locator(".card").first.is_visible()


def test_ten_thousand_steps_draw_within_seconds(opened, tmp_path):
    folder = write_run(tmp_path / "long", steps=10_000)
    names = [f"{part}/{k}" for part in ("reward", "parse", "time", "other") for k in range(8)]
    columns = {name: (lambda step, k=k: np.sin(step / 300 + k) + step % 7 / 10) for k, name in enumerate(names)}
    write_lines(folder / "metrics.jsonl", metric_lines(10_000, **columns))
    page = opened(folder)
    page.locator("#curves").scroll_into_view_if_needed()
    until(page, "document.querySelectorAll('.chart .line').length >= 6")
    drawn = page.evaluate("performance.now()") / 1000  # since the file began to be read
    page.mouse.wheel(0, 3000)
    until(page, "scrollY > 500")
    until(page, "[...document.querySelectorAll('.chart')].at(-1).querySelector('.line')")
    assert (
        page.evaluate("Math.max(...[...document.querySelectorAll('.line')].map(line => line.getAttribute('d').length))")
        < 40_000
    )
    print(f"drawn after {drawn:.2f} s")
    assert drawn < 5


# -------------------------------------------------------------------------------------------------------- evaluations


@pytest.fixture
def evaluation(tmp_path) -> Path:
    """Two models, with rows that either has right alone."""
    first, second = [0] * 6 + [1, 1, 1, 0], [1] * 6 + [0, 0, 1, 0]
    return write_evaluation(tmp_path / "eval", {"base": first, "rl": second})


def test_bars_have_the_heights_of_the_means_and_whiskers_those_of_the_intervals(opened, evaluation):
    page = opened(evaluation)
    until(page, "document.querySelectorAll('.mean').length === 2")
    heights = [float(bar.get_attribute("height")) for bar in page.locator(".mean .edge").all()]
    grid = [float(line.get_attribute("y1")) for line in page.locator(".barchart .grid").all()]
    scale = max(grid) - min(grid)  # from 0% to 100%
    assert heights == pytest.approx([0.3 * scale, 0.7 * scale], abs=0.01)
    low, high = (max(grid) - share * scale for share in (0.1078, 0.6032))  # Wilson, 3 of 10
    path = page.locator(".mean .whisker").first.get_attribute("d").split("M")[1]
    assert [float(part) for part in path.replace("V", " ").split()[1:]] == pytest.approx([low, high], abs=0.1)
    assert page.locator(".mean title").first.text_content() == "base 30.0%, interval 10.8 to 60.3, 10 rows"
    fills = {bar.get_attribute("fill") for bar in page.locator(".mean .edge").all()}
    assert fills == {"url(#hatch-0)", "url(#hatch-1)"}  # told apart without colours
    assert "in domain: base 30.0%" in page.locator(".barchart svg").get_attribute("aria-label")


def test_tables_show_the_papers_figures_and_their_faults(opened, evaluation):
    page = opened(evaluation)
    tables = page.locator("#tables")
    assert "Table 1: Qwen2.5-VL-3B\t61.8†" in tables.locator("tr.printed").first.inner_text()
    assert tables.get_by_text("† Table 1 and Tables 2 and 4a disagree").is_visible()
    assert tables.locator("tbody tr").first.inner_text().split() == ["base", "30.0", "[10.8,", "60.3]", "n", "=", "10"]
    tables.get_by_role("button", name="Strict", exact=True).click()
    assert tables.get_by_text("rl above base").count() == 1


def test_both_answers_to_a_row_stand_side_by_side_with_their_boxes(opened, evaluation):
    page = opened(evaluation)
    cards = page.locator("#cards .card")
    assert cards.count() == 5
    headings = page.locator("#cards h3").all_inner_texts()
    assert headings == ["rl is right, base is not: 6 rows, 3 shown", "base is right, rl is not: 2 rows, 2 shown"]
    sides = cards.first.locator(".side-answer")
    assert [side.get_attribute("class") for side in sides.all()] == ["side-answer wrong", "side-answer right"]
    left, right = (sides.nth(i).bounding_box() for i in range(2))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    cards.first.scroll_into_view_if_needed()
    wrong, rightly = (colours_near(sides.nth(i).locator(".image")) for i in range(2))
    gold_side = [(0.25, y) for y in np.linspace(0.3, 0.7, 20)]
    assert np.mean([wrong(x, y, GREEN) for x, y in gold_side]) >= 0.9  # the dashes cross it
    assert 0.4 < np.mean(dashes_of_a_wrong_box(wrong)) < 1
    overlaid = [[rightly(x, y, colour) for x, y in gold_side] for colour in (GREEN, ORANGE)]
    assert all(map(any, overlaid))  # dashes of the answer over the line of the gold box
    assert not any(dashes_of_a_wrong_box(rightly))


def test_hostile_names_and_answers_of_models_stay_text(opened, tmp_path):
    rows = write_detection_rows(tmp_path / "rows.jsonl", 2, problem=HOSTILE)
    name = "<img src=x onerror='window.hacked = 1'>"
    folders = [
        write_answers(
            tmp_path / f"{name}{k}",
            f"<b>{name}",
            rows,
            [detection_answer(n, (n + k) % 2 == 0, HOSTILE) for n in (0, 1)],
        )
        for k in (0, 1)
    ]
    page = opened(*folders)
    page.get_by_role("button", name="Strict", exact=True).first.click()
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None
    assert (
        page.locator("script").count() == 2 and page.locator("#cards img").count() == page.locator("img").count() == 4
    )
    assert page.locator(".side-answer .text").first.inner_text().startswith("</script><script>")


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (800, "dark")])
def test_a_narrow_page_of_an_evaluation_does_not_scroll_sideways(opened, evaluation, width, scheme):
    page = opened(evaluation, viewport={"width": width, "height": 800}, color_scheme=scheme)
    until(page, "document.querySelectorAll('.mean').length === 2")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    edges = page.evaluate(
        "[...document.querySelectorAll('.barchart text')].map(text => text.getBoundingClientRect().right)"
    )
    assert max(edges) <= width


def test_accuracy_of_checkpoints_is_drawn_over_the_steps_of_all_stages(opened, tmp_path):
    rows = write_detection_rows(tmp_path / "rows.jsonl", 20)
    folders = []
    for stage, step, right in (("stage1", 50, 5), ("stage1", 100, 10), ("stage2", 100, 15)):
        for domain in ("in", "out"):
            answers = [detection_answer(number, number < right - 5 * (domain == "out")) for number in range(20)]
            folder = tmp_path / f"{stage}-{step}"
            write_answers(folder, domain, rows, answers, domain, f"runs/demo/{stage}/checkpoints/{step}")
        folders.append(folder)
    page = opened(*folders)
    chart = page.locator("#steps .chart")
    until(page, "document.querySelectorAll('#steps .chart > svg .dot').length === 6")
    label = chart.locator("> svg").get_attribute("aria-label")
    assert "in domain: 0.75 at step 200, from 0.531 to 0.888" in label  # Wilson, 15 of 20
    assert "out of domain: 0.5 at step 200" in label
    assert chart.locator("> svg .whisker").count() == 6
    assert chart.locator("> svg .axis").all_text_contents()[-2:] == ["stage1", "stage2"]


def test_stability_and_held_out_rows_of_runs_are_drawn_with_their_spread(opened, workdir, tmp_path):
    other = write_run(tmp_path / "other", stages=("one", "two"))
    page = opened(workdir, other)
    until(page, "document.querySelectorAll('#stability .area, #stability .whisker').length > 1")
    assert page.locator("#stability .chart h4").all_inner_texts()[0].startswith("Accuracy")
    assert page.locator("#stability .chart").first.locator(".legend").inner_text().split() == ["made", "other"]
    until(page, "document.querySelectorAll('#held-out .chart > svg .dot').length === 3")
    label = page.locator("#held-out .chart > svg").get_attribute("aria-label")
    assert "share of rows with full accuracy" in label
    assert "made: 0.4 at step 40, from 0.309 to 0.498" in label  # Wilson, 40 of 100


def test_rows_in_and_out_of_domain_are_drawn_against_steps_and_compared(opened, tmp_path):
    folders = [write_run(tmp_path / name, stages=("one",)) for name in ("rl", "sft")]
    for folder in folders:
        matrix = ForgettingMatrix(folder / "curriculum.json", writes=True)
        for step, passed in ((0, 40), (10, 50), (20, 60)):
            for name, domain, fall in (("one", "in", 0), ("one/out_of_domain", "out", 30)):
                measured = Measurement("one", step, name, 100, 1.0, 0.01, 0.5, 0.9, passed - fall, domain=domain)
                matrix.add([measured])
    page = opened(folders[0])
    until(page, "document.querySelectorAll('#held-out .chart > svg .dot').length === 9")
    assert page.locator("#held-out .chart h4").all_inner_texts()[0].startswith("In and out of the domain of one")
    label = page.locator("#held-out .chart > svg").first.get_attribute("aria-label")
    assert "in domain: 0.6 at step 20" in label and "out of domain: 0.3 at step 20" in label
    assert "one, out of domain" in page.locator("#forgetting .matrix thead").inner_text()
    page = opened(*folders)
    until(page, "document.querySelectorAll('#held-out .chart > svg .dot').length === 12")
    titles = page.locator("#held-out .chart h4").all_inner_texts()
    assert [title.split("\n")[0] for title in titles][1].startswith("Out of the domain of one")
    label = page.locator("#held-out .chart > svg").nth(1).get_attribute("aria-label")
    assert "rl: 0.3 at step 20" in label and "sft: 0.3 at step 20" in label


# --------------------------------------------------------------------------------------------------- rejected sampling


def test_a_job_of_rejected_sampling_shows_its_composition_scores_judge_and_answers(opened, tmp_path):
    page = opened(write_job(tmp_path / "job"))
    assert page.locator("main > section").count() == 6  # without a second judge there are no disagreements
    assert page.locator(".meter").all_inner_texts() == ["geometry\n8 of 10", "general\n3 of 10", "all maths\n11 of 20"]
    until(page, "document.querySelectorAll('#scores .score').length === 2")
    below, above = page.locator("#scores .score").all()
    assert (below.get_attribute("class"), above.get_attribute("class")) == ("score below", "score above")
    assert float(below.get_attribute("height")) > 2 * float(above.get_attribute("height"))
    threshold = float(page.locator("#scores .threshold").get_attribute("x1"))
    assert float(below.get_attribute("x")) < threshold < float(above.get_attribute("x"))
    judged = page.locator("#judge table").first.inner_text().split("\n")
    assert judged[-2:] == ["above the threshold\t10\t1", "not above it\t2\t27"]
    card = page.locator("#kept .card").first
    answer, judge = (card.locator(".side-answer").nth(i).bounding_box() for i in range(2))
    image = card.locator("img").bounding_box()
    assert image["x"] + image["width"] <= answer["x"] and answer["x"] + answer["width"] <= judge["x"]
    assert "adds up" in card.inner_text() and "right by rules" in card.inner_text()


def test_answers_on_which_judges_disagree_stand_between_image_and_both_rationales(opened, tmp_path):
    page = opened(write_job(tmp_path / "job", disputed=3))
    assert "3: those on other sides" in page.locator("#disagreements .note").inner_text()
    assert page.locator("#disagreements .card").count() == 3
    card = page.locator("#disagreements .card").first
    boxes = [card.locator(".side-answer").nth(i).bounding_box() for i in range(3)]
    image = card.locator("img").bounding_box()
    assert image["x"] + image["width"] <= boxes[0]["x"]
    assert all(one["y"] == two["y"] and one["x"] + one["width"] <= two["x"] for one, two in pairwise(boxes))
    first, second = (card.locator(".side-answer").nth(i) for i in (1, 2))
    assert "First judge: rules rules-1" in first.inner_text() and "adds up" in first.inner_text()
    assert "accuracy 40" in second.inner_text() and "does not add up" in second.inner_text()
    assert ["right" in one.get_attribute("class").split() for one in (first, second)] == [True, False]
    assert "unreadable" in page.locator("#disagreements .card").nth(1).inner_text()


def test_hostile_answers_of_a_job_stay_text_on_a_narrow_page(opened, tmp_path):
    page = opened(write_job(tmp_path / "job", text=HOSTILE, disputed=1), viewport={"width": 360, "height": 800})
    page.wait_for_timeout(100)
    assert page.evaluate("window.hacked") is None and page.locator("script").count() == 2
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 360
    assert page.locator(".side-answer .text").first.inner_text().startswith("</script><script>")


def test_the_picture_of_the_readme_is_drawn(workdir, tmp_path, capsys):
    row = json.loads((workdir / "two" / "rollouts" / "1.jsonl").read_text().splitlines()[-1])["id"]
    out = tmp_path / "picture.png"
    with ThreadPoolExecutor(1) as thread:  # the browser of the other tests is driven from this one
        thread.submit(report_picture.main, [str(workdir), row, str(out)]).result()
        with pytest.raises(SystemExit):
            thread.submit(report_picture.main, [str(workdir), "no such row", str(out)]).result()
    with Image.open(out) as picture:
        assert picture.width == 1680 and 400 < picture.height < 1400
        assert len(picture.getcolors() or []) > 20
