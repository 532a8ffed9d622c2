"""Assembles pages: one HTML file each, with its style, script and data inlined."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from currreft_jax.report.answer_pairs import pairs_json
from currreft_jax.report.before_after import before_after_json
from currreft_jax.report.comparisons import EvaluatedModels, comparison_record
from currreft_jax.report.embed import html_safe_json
from currreft_jax.report.rejections import RejectionJob, disagreements_json, kept_json, rejection_record
from currreft_jax.report.rollouts import rollouts_json
from currreft_jax.report.runs import Run, run_record

MAX_BYTES = 19_500_000  # of the whole page
_HERE = Path(__file__).parent


class PageKind(StrEnum):
    """What a page is about: the name of its sections' file and of its script."""

    RUN = "run"
    COMPARISON = "comparison"
    REJECTION = "rejection"


_LONGEST = {
    PageKind.RUN: "rollouts",
    PageKind.COMPARISON: "answers",
    PageKind.REJECTION: "kept",
}  # the section that a link at the top skips to


def render_page(run: Run, others: Sequence[Run] = (), max_bytes: int = MAX_BYTES) -> tuple[str, dict[str, int]]:
    """Renders the report of a run, with the curves of other runs.

    Args:
        run: its rollouts are shown.
        others: runs to compare it with.
        max_bytes: size limit; rollouts that would exceed it are left out.

    Returns:
        The page, and the counts of `rollouts_json`; those of rows shown `before_after`, and their missing images.

    Raises:
        ValueError: a file is damaged; the message names file and line.
    """
    runs = html_safe_json([run_record(each) for each in (run, *others)])
    room = max_bytes - _size(PageKind.RUN) - len(runs.encode())
    before_after, answer_counts = before_after_json(run, room // 4)
    rollouts, counts = rollouts_json(run, room - len(before_after.encode()))
    data = f'{{"runs":{runs},"beforeAfter":{before_after},"rollouts":{rollouts}}}'
    counts["missing"] += answer_counts["missing"]
    counts["before_after"] = answer_counts["shown"]
    return _assemble(PageKind.RUN, run.workdir.resolve().name, data), counts


def render_comparison(evaluated: EvaluatedModels, max_bytes: int = MAX_BYTES) -> tuple[str, dict[str, int]]:
    """Renders the report of an evaluation: tables, bars, and rows that two models answer otherwise.

    Args:
        evaluated: the models.
        max_bytes: size limit; rows that would exceed it are left out.

    Returns:
        The page, and the counts of `pairs_json`.

    Raises:
        ValueError: a file is damaged; the message names file and line.
    """
    comparison = html_safe_json(comparison_record(evaluated))
    room = max_bytes - _size(PageKind.COMPARISON) - len(comparison.encode())
    pairs, counts = pairs_json(evaluated.models, room)
    data = f'{{"comparison":{comparison},"answers":{pairs}}}'
    return _assemble(PageKind.COMPARISON, evaluated.title, data), counts


def render_rejection(job: RejectionJob, max_bytes: int = MAX_BYTES) -> tuple[str, dict[str, int]]:
    """Renders the report of a job of rejected sampling: what was kept and why, with kept and disputed answers.

    Args:
        job: the job.
        max_bytes: size limit; answers that would exceed it are left out. Disputed ones take half at most.

    Returns:
        The page, and the counts of kept and of `disputed` answers, and of `missing` images.

    Raises:
        ValueError: a file is damaged; the message names it.
    """
    rejection = html_safe_json(rejection_record(job))
    room = max_bytes - _size(PageKind.REJECTION) - len(rejection.encode())
    disputed, disputed_counts = disagreements_json(job, room // 2)
    kept, counts = kept_json(job, room - len(disputed.encode()))
    data = f'{{"rejection":{rejection},"disputed":{disputed},"kept":{kept}}}'
    counts = {
        **{"shown": counts["shown"], "disputed": disputed_counts["shown"]},
        "missing": counts["missing"] + disputed_counts["missing"],
    }
    return _assemble(PageKind.REJECTION, job.folder.resolve().name, data), counts


def _assemble(kind: PageKind, title: str, data: str) -> str:
    """Fills the template.

    The page's content security policy allows only its own script and style, by their hashes, and no requests.
    """
    template, style, script = _parts(kind)
    fields = {
        "title": html.escape(title),
        "skip": _LONGEST[kind],
        "policy": f"default-src 'none'; img-src data:; style-src {_csp_hash(style)}; script-src {_csp_hash(script)};"
        " base-uri 'none'; form-action 'none'",
        "style": style,
        "script": script,
        "data": data,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fields[match[1]], template)


def _parts(kind: PageKind) -> tuple[str, str, str]:
    """Returns the template, the style and the script of a page."""
    names = ("page.html", f"{kind}.html", "page.css", "shared.js", f"{kind}.js")
    template, sections, style, *scripts = ((_HERE / name).read_text("utf-8") for name in names)
    return template.replace("{{sections}}", sections), style, "".join(scripts)


def _size(kind: PageKind) -> int:
    """Returns the bytes of a page without its data."""
    return sum(len(text.encode()) for text in _parts(kind)) + 1000


def _csp_hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
