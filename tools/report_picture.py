"""Draw a picture of a run's report: its held-out curves beside one group of completions.

  python -m tools.report_picture runs/demo world-train-0-20002511-detection-open docs/demo.png

made the picture in the README: headless Chromium opens the report, and the last group of completions that the page
shows of this row is taken.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from currreft_jax.config.arguments import CommandParser
from currreft_jax.config.output import output_path
from currreft_jax.report.page import render_page
from currreft_jax.report.runs import Run, read_run

WIDTH, HEIGHT = 1120, 900
SHOWN = 4  # completions
COLOURS = 128  # of the file, a third of the size of one in full colour
# Searches for the row, and leaves on the page the chart and the row's last card, side by side.
ARRANGE = """
([row, shown]) => {
  const search = document.querySelector("#rollouts input[type=search]");
  search.value = row;
  search.dispatchEvent(new Event("input"));
  const chart = document.querySelector("#held-out .chart");
  const card = [...document.querySelectorAll("#cards .card")].at(-1);
  if (!chart || !card) return false;
  card.querySelectorAll(`.completion:nth-child(n+${shown + 1}), .facts button`).forEach((item) => item.remove());
  const picture = document.createElement("div"), style = document.createElement("style");
  picture.id = "picture";
  picture.append(chart, card);
  style.textContent = "#picture { display: flex; gap: 16px; align-items: start; padding: 12px } " +
    "#picture > * { margin: 0 } #picture > .chart { flex: 0 0 380px } #picture > .card { flex: 1 }";
  document.body.replaceChildren(picture, style);
  return true;
}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the program."""
    options = _parser().parse_args(arguments)
    try:
        draw_picture(read_run(options.folder), options.row, options.out)
    except (ValueError, OSError) as error:
        sys.exit(f"report_picture: {error}")


def draw_picture(run: Run, row: str, out: Path) -> None:
    """Writes the picture as PNG.

    Raises:
        ValueError: the report has no held-out rows or no completions to the row, or there is no browser.
    """
    try:
        from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError("it needs Playwright: pip install -e '.[browser]'") from error
    browser_path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if not browser_path:
        raise ValueError("no Chromium; install it (on Debian: apt install chromium), or set CHROMIUM to its path")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = Path(folder, "report.html")
        file.write_text(render_page(run, [])[0], "utf-8")
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=1.5, bypass_csp=True)
        page.goto(file.as_uri())
        if not page.evaluate(ARRANGE, [row, SHOWN]):
            raise ValueError(f"the report shows no held-out rows, or no completions to {row}")
        picture = page.locator("#picture").screenshot()
        browser.close()
    with Image.open(io.BytesIO(picture)) as image:
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(out, optimize=True)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="report_picture", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("row", metavar="ROW", help="id of a row that it answered")
    parser.add_argument("out", type=output_path, metavar="FILE", help="PNG to write")
    return parser


if __name__ == "__main__":
    main()
