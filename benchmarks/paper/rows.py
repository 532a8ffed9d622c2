"""Rows that the arms are trained and evaluated on: those of the embedded world, or a user's."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs import common
from currreft_jax.config import Kind, QuotaSource, Source, Suite, SuiteDomain, Task
from currreft_jax.data.row_files import RowFile
from currreft_jax.data.rows import row_to_json
from currreft_jax.data.world_rows import SIZES, ensure_world
from currreft_jax.structs import Row
from currreft_jax.world.pretraining import PretrainingExample, careful_text, chat_row
from currreft_jax.world.questions import make_question
from currreft_jax.world.scenes import AXES, Domain, domains, make_scene
from currreft_jax.world.settings import DIFFICULTIES, WorldSettings
from currreft_jax.world.write import DESCRIPTION, write_world

KINDS = (Kind.JUDGE, Kind.CHOICE, Kind.OPEN)
BARE, REASONED = "bare", "reasoned"
# The middle one first, so that a comparison that was stopped has it whole.
WORLDS = {name: DIFFICULTIES[name] for name in ("middle", *DIFFICULTIES)}
_BARE_TEXT = "<answer> {answer} </answer>"
_REJECTION_ROWS, _QUOTA = 320, 40  # as in configs/reject.py:tiny
Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PaperRows:
    """Rows of one world.

    Attributes:
        name: name of the world, and of the folder of its runs.
        model: path of the base; the config's where empty.
        world: folder of an embedded world, drawn there if missing; none where empty.
        settings: difficulty of that world.
        train: training rows of each kind.
        golds: supervised rows by what their answers hold: `bare` golds alone, or `reasoned` ones, which a user's rows
            may lack.
        suites: files of test rows.
        rejection: rows that self-improvement answers; None for the config's.
    """

    name: str
    model: str
    world: str
    settings: WorldSettings
    train: Mapping[Kind, Sequence[Source]]
    golds: Mapping[str, Sequence[Source]]
    suites: Sequence[Suite]
    rejection: Sequence[QuotaSource] | None = None


def rows_of_world(name: str, runs: Path) -> PaperRows:
    """Returns the rows of an embedded world: all kinds in domain, and open rows on each axis out of domain.

    Args:
        name: one of `WORLDS`.
        runs: folder of the runs; supervised rows are written there.

    Raises:
        ValueError: there is no such world.
    """
    if name not in WORLDS:
        raise ValueError(f"--worlds={name}: it takes {', '.join(WORLDS)}")
    settings = WORLDS[name]
    folder = Path(common.WORLD if settings == WorldSettings() else f"{common.WORLD}-{name}")
    train = {kind: [Source(str(folder / f"train_{kind.value}.jsonl"))] for kind in KINDS}
    tests = {f"in-{kind.value}": (f"test_{kind.value}.jsonl", SuiteDomain.IN) for kind in KINDS}
    tests |= {f"out-{axis}": (f"test_{axis}_open.jsonl", SuiteDomain.OUT) for axis in AXES}
    return PaperRows(
        name=name,
        model=common.base("paper", "tiny").model.path,
        world=str(folder),
        settings=settings,
        train=train,
        golds={answers: [Source(str(runs / name / "golds" / f"{answers}.jsonl"))] for answers in (BARE, REASONED)},
        suites=[Suite(suite, [Source(str(folder / file))], domain=domain) for suite, (file, domain) in tests.items()],
        rejection=[
            QuotaSource(kind.value, Source(train[kind][0].file, sample=f"random:{_REJECTION_ROWS}"), _QUOTA)
            for kind in KINDS
        ],
    )


def rows_of_user(inside: Path, outside: Path) -> PaperRows:
    """Returns a user's rows, in the layout of `dataset build`.

    Args:
        inside: folder with `train/judge-*.jsonl`, `choice-*` and `open-*`, perhaps `train/reasoned-*.jsonl`
            (conversations whose answers reason), and `test/*.jsonl`.
        outside: folder whose `test/out-*.jsonl`, or else `test/*.jsonl`, are out of domain; or one such file.

    Raises:
        FileNotFoundError: a folder lacks such files.
    """

    def files(folder: Path, pattern: str) -> list[Path]:
        found = sorted(folder.glob(pattern))
        if not found:
            raise FileNotFoundError(f"{folder} has no {pattern}: write rows in the layout of `dataset build`")
        return found

    train = {kind: [Source(str(path)) for path in files(inside, f"train/{kind.value}-*.jsonl")] for kind in KINDS}
    golds: dict[str, Sequence[Source]] = {BARE: train[Kind.OPEN]}
    if reasoned := sorted(inside.glob("train/reasoned-*.jsonl")):
        golds[REASONED] = [Source(str(path)) for path in reasoned]
    tests = [path for path in files(inside, "test/*.jsonl") if not path.name.startswith("out-")]
    others = [outside] if outside.is_file() else sorted(outside.glob("test/out-*.jsonl"))
    others = others or files(outside, "test/*.jsonl")
    suites = [
        Suite(f"{domain.value}-{path.stem.removeprefix(f'{domain.value}-')}", [Source(str(path))], domain=domain)
        for domain, paths in ((SuiteDomain.IN, tests), (SuiteDomain.OUT, others))
        for path in paths
    ]
    return PaperRows("rows", "", "", WorldSettings(), train, golds, suites)


def ensure_rows(rows: PaperRows, log: Log) -> None:
    """Draws an embedded world, and writes its supervised rows, where they are missing; a second process waits."""
    if not rows.world:
        return
    folder = Path(rows.world)
    _ensure_images(folder, rows.settings, log)
    for answers, sources in rows.golds.items():
        path = Path(sources[0].file)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                write_golds(folder, path, rows.settings, reasoned=answers == REASONED)


def _ensure_images(folder: Path, settings: WorldSettings, log: Log) -> None:
    """Draws a world unless it is there; programs then take it as they take the usual one."""
    if settings == WorldSettings():
        ensure_world(folder, log)
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / DESCRIPTION).exists():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            log(f"drawing the world into {folder}")
            write_world(partial, row_to_json, sizes=SIZES, settings=settings)
            partial.rename(folder)


def write_golds(world: Path, path: Path, settings: WorldSettings, *, reasoned: bool) -> None:
    """Writes the open training rows of a world as conversations, under their ids, so that pass rates name them.

    Their spaces are those of the base's own answers, of which each word is a token.

    Raises:
        ValueError: the world was drawn with other settings.
    """
    domain = domains(settings)["in"]
    partial = path.with_suffix(".partial")
    rows = world / f"train_{Kind.OPEN.value}.jsonl"
    with RowFile(rows) as file, partial.open("w", encoding="utf-8") as out:
        for row in (file[index] for index in range(len(file))):
            text = careful_text(_thought(row, settings, domain), row.solution) if reasoned else ""
            text = text or _BARE_TEXT.format(answer=row.solution)
            out.write(json.dumps(row_to_json(chat_row((PretrainingExample(row, text),), row.id))) + "\n")
    partial.replace(path)


def _thought(row: Row, settings: WorldSettings, domain: Domain) -> str:
    """Draws a row's question again, and returns the thought that leads to its answer."""
    _, split, seed, scene, task, _ = row.id.split("-")
    question = make_question(
        make_scene(int(seed), int(scene), domain, settings),
        Task(task),
        row.kind,
        image=row.images[0],
        split=split,
        settings=settings,
    )
    if question.row.solution != row.solution:
        raise ValueError(f"{row.id} was drawn with other settings than this version's: remove the world's folder")
    return question.thought
