"""The commands that the README and the pages of docs/ print.

A block of commands that no test machine can run, for want of hardware, a network, or files of others, has a comment on
the line before it, `<!-- needs: a GPU -->`. Recognisable needs, such as published weights, need no comment.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]
# What a command needs that the tests do not have, by what stands in it.
NEEDS = {
    r":[37]b\b|Qwen/|checkpoints/3b": "published weights and accelerators",
    r"\b(sbatch|srun|kubectl|docker|apptainer)\b|launch/tpu_vm\.sh": "a cluster or a container",
    r"--topology=|make plan": "the compiler of an accelerator",
    r"--(judge_)?endpoint=|--judge_url=": "a server",
    r"VOCdevkit|sets/|--root sets|--source coco|\.tsv": "published data",
    r"rows/(voc|mine|paper|reject)": "rows of published data or of the reader's",
    r"pip install|\bhf download\b|python3 -m venv": "a network",
    r"^make (?!help\b)|benchmarks\.(?!gpu)": "minutes to hours of its own",
    r"-python\b|ui\.perfetto|xprof|py-spy|nvidia-smi|report_picture": "other programs",
}
_BLOCK = re.compile(r"(?:<!-- needs: (?P<needs>[^>]+) -->\s*)?^(?P<indent> *)```bash\n(?P<body>.*?)^ *```", re.S | re.M)
_INLINE = re.compile(
    r"`((?:python -m (?:currreft_jax|tools|benchmarks)|make|launch/|sbatch|TPU=|--config=configs/)[^`]*)`"
)


@dataclass(frozen=True)
class Command:
    """A printed command, on one line and without its comment; `needs` is empty if the tests can run it."""

    page: str
    text: str
    needs: str

    @property
    def words(self) -> list[str]:
        """Its words, as a shell splits them."""
        return shlex.split(self.text)


def commands() -> Iterator[Command]:
    """Yields every command of a block or of a span of code."""
    for page in PAGES:
        text, name = page.read_text("utf-8"), str(page.relative_to(ROOT))
        for block in _BLOCK.finditer(text):
            body = re.sub(r"(<<'?(\w+)'?.*?\n).*?^\2$", r"\1", block["body"].replace("\\\n", " "), flags=re.S | re.M)
            for line in body.splitlines():
                if command := re.sub(r"(^|\s)#.*", "", line).strip():
                    yield Command(name, command, block["needs"] or _needs(command))
        # A span of code with a name in capitals, or a program's name alone, is no command to type.
        for span in _INLINE.finditer(re.sub(r"```.*?```", "", text, flags=re.S)):
            command = " ".join(span[1].split())
            if " " in command.removeprefix("python -m ") and not re.search(r"\.\.\.|…|\b[A-Z]{2,}", command):
                yield Command(name, command, _needs(command))


def _needs(command: str) -> str:
    return next((needs for pattern, needs in NEEDS.items() if re.search(pattern, command)), "")
