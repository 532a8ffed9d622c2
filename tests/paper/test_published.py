"""The published comparison, made again from its workdirs."""

import tarfile

import pytest

from benchmarks.paper.page import write_page
from tests.documented import ROOT

DOCS = ROOT / "docs"


@pytest.mark.slow
def test_the_published_page_and_figures_are_made_again_from_the_published_workdirs(tmp_path):
    for archive in DOCS.glob("miniature-*.tar.xz"):
        with tarfile.open(archive) as workdirs:
            workdirs.extractall(tmp_path / "runs", filter="data")
    write_page(tmp_path / "runs", tmp_path / "out" / "miniature.md")
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    published = {path.name: path.read_bytes() for path in DOCS.glob("miniature*") if path.suffix != ".xz"}
    assert made == published
