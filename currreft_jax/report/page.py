"""Assembles the page: one HTML file with its style, script and data inlined."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from pathlib import Path

from currreft_jax.report.embed import html_safe_json
from currreft_jax.report.rollouts import rollouts_json
from currreft_jax.report.runs import Run, run_record

MAX_BYTES = 19_500_000  # of the whole page
_HERE = Path(__file__).parent


def render_page(run: Run, others: Sequence[Run] = (), max_bytes: int = MAX_BYTES) -> tuple[str, dict[str, int]]:
    """Renders the report of a run, with the curves of other runs.

    The page's content security policy allows only this script and this style, by their hashes, and no requests.

    Args:
        run: its rollouts are shown.
        others: runs to compare it with.
        max_bytes: size limit; rollouts that would exceed it are left out.

    Returns:
        The page, and the counts of `rollouts_json`.

    Raises:
        ValueError: a file is damaged; the message names file and line.
    """
    template, style, script = ((_HERE / f"page.{suffix}").read_text("utf-8") for suffix in ("html", "css", "js"))
    runs = html_safe_json([run_record(each) for each in (run, *others)])
    room = max_bytes - sum(len(text.encode()) for text in (template, style, script, runs)) - 1000
    rollouts, counts = rollouts_json(run, room)
    fields = {
        "title": html.escape(run.workdir.resolve().name),
        "policy": f"default-src 'none'; img-src data:; style-src {_csp_hash(style)}; script-src {_csp_hash(script)};"
        " base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "data": f'{{"runs":{runs},"rollouts":{rollouts}}}',
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], template), counts


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
