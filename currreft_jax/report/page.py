"""The page: one HTML file with its style, its script and its data in it."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from pathlib import Path

from currreft_jax.report.book import book
from currreft_jax.report.embed import embedded
from currreft_jax.report.runs import Run, told

LIMIT = 19_500_000  # bytes of the whole page
_HERE = Path(__file__).parent


def page(run: Run, others: Sequence[Run] = (), limit: int = LIMIT) -> tuple[str, dict[str, int]]:
    """The report of a run, with the curves of others beside its own.

    The browser is told to run and apply only this script and this style, by their hashes, and to fetch nothing.

    Args:
        run: whose completions are shown.
        others: to compare it with.
        limit: bytes of the page; fewer completions are shown where it would be larger.

    Returns:
        The page, and what of the completions is in it: see `book`.

    Raises:
        ValueError: a file is damaged; the message names file and line.
    """
    template, style, script = ((_HERE / f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    runs = embedded([told(it) for it in (run, *others)])
    room = limit - sum(len(part.encode()) for part in (template, style, script, runs)) - 1000
    completions, counts = book(run, room)
    parts = {
        "title": html.escape(run.workdir.resolve().name),
        "policy": f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)};"
        " base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "data": f'{{"runs":{runs},"book":{completions}}}',
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], template), counts


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
