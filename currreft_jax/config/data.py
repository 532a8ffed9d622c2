"""Settings of rows and batches."""

from dataclasses import dataclass
from enum import Enum


class Task(Enum):
    """Subject of a row; `OTHER` is for conversations, and for open rows that a reward of one's own scores."""

    DETECTION = "detection"
    CLASSIFY = "classify"
    MATH = "math"
    OTHER = "other"


class Kind(Enum):
    """Answer format of a row: one for each stage of the paper, and `CHAT` for conversations, which no rule scores.

    `JUDGE` asks for yes or no, `CHOICE` for option letters, `OPEN` for the answer itself.
    """

    JUDGE = "judge"
    CHOICE = "choice"
    OPEN = "open"
    CHAT = "chat"


class OnBadRow(Enum):
    """Response to an unreadable row: stop the run, or skip the row, count it and report it."""

    ERROR = "error"
    SKIP = "skip"


class Shapes(Enum):
    """Static shapes of batches, each of which is compiled.

    `AUTO` fits two to the rows of all stages before the run, and keeps them in the workdir. `BUCKETS` takes those of
    the bucket sizes, and compiles them as batches need them.
    """

    AUTO = "auto"
    BUCKETS = "buckets"


@dataclass(slots=True)
class Source:
    """One file of rows in a mixture.

    Attributes:
        file: JSON lines, a JSON list, or the authors' YAML list of such files.
        weight: share of the batches, relative to the other sources.
        sample: which rows of the file: all, first:N, end:N or random:N, with N a number or a percentage such as 10%.
        image_root: folder of relative image paths; the file's folder where empty.
        kind: kind of the rows that have none.
        task: task of the rows that have none.
    """

    file: str = ""
    weight: float = 1.0
    sample: str = "all"
    image_root: str = ""
    kind: Kind | None = None
    task: Task | None = None


@dataclass(slots=True)
class Data:
    """Batches of rows.

    Attributes:
        batch_size: prompts per step, over all hosts.
        template: prompt template: a name of `data.prompts.TEMPLATES`, or `package.module:NAME`.
        shapes: static shapes of batches; with `AUTO`, the largest of each list below is a limit of the rows alone.
        prompt_lengths: bucket sizes of prompt lengths; a batch uses the smallest that fits.
        completion_lengths: bucket sizes of gold completions.
        slots: bucket sizes of image slots per data shard; where empty, sizes a quarter apart, up to the need of one
            image of `max_pixels` per prompt.
        on_bad_row: response to rows that cannot be read, scored, shown or padded to these sizes.
        max_bad_rows: more of them stop the run in any case.
        pass_rates: JSON lines file of `{"id", "pass_rate"}`, or of answers of `evaluate`, for `keep_pass_rates`; none
            where empty.
        keep_pass_rates: lowest and highest pass rate, both excluded; rows outside are left out.
        world: folder of the embedded world, drawn there if a stage has files of it and it is missing.
        threads: threads per host that read images.
        prefetch: batches to read ahead.
    """

    batch_size: int = 8
    template: str = "paper"
    shapes: Shapes = Shapes.AUTO
    prompt_lengths: tuple[int, ...] = (256, 512, 768, 1024, 2048)
    completion_lengths: tuple[int, ...] = (64, 256, 512, 1024)
    slots: tuple[int, ...] = ()
    on_bad_row: OnBadRow = OnBadRow.ERROR
    max_bad_rows: int = 100
    pass_rates: str = ""
    keep_pass_rates: tuple[float, float] = (0.0, 1.0)
    world: str = ""
    threads: int = 4
    prefetch: int = 2
