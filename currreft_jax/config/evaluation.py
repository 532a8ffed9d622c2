"""Settings of an evaluation: models, suites of rows, decoding."""

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from currreft_jax.config.checks import Demand, is_mesh, refuse, refuse_wrong_types
from currreft_jax.config.data import Kind, Source, Task
from currreft_jax.config.endpoint import EndpointLimits, ImageEncoding
from currreft_jax.config.judge import Judge
from currreft_jax.config.model import MeshShape, Pretrained
from currreft_jax.config.rewards import Maths, Rewards, validate_rewards
from currreft_jax.config.sampling import Sampling, validate_sampling


class ImageCondition(Enum):
    """Images that the model sees: the rows' own, plain grey ones of their sizes, or those of other rows."""

    ORIGINAL = "original"
    BLANK = "blank"
    SHUFFLED = "shuffled"


class SuiteDomain(Enum):
    """Whether the rows of a suite are like the training rows."""

    IN = "in"
    OUT = "out"


class ScorerName(Enum):
    """Scorer: the rewards' rules, or the authors' lenient one beside them, for comparison."""

    RULES = "rules"
    OFFICIAL = "official"


class BenchmarkName(Enum):
    """Published benchmarks, whose files are read as downloaded."""

    MATHVISTA = "mathvista"
    MATH = "math"
    AI2D = "ai2d"
    MMVET = "mmvet"
    MMBENCH = "mmbench"
    OCRBENCH = "ocrbench"
    LLAVABENCH = "llavabench"


class Extraction(Enum):
    """How benchmarks read answers: `READABLE` as a careful person does, or as a generation of VLMEvalKit's rules.

    `G1` is that until August 2025, of the paper, `G2` that from then on, `G3` that since June 2026. They read the whole
    text of an answer, while `READABLE` reads the content of `<answer>`, or what follows the thoughts.
    """

    READABLE = "readable"
    G1 = "G1"
    G2 = "G2"
    G3 = "G3"


@dataclass(slots=True)
class EvaluatedModel:
    """A model to evaluate.

    Attributes:
        path: a hub id, a model folder, a stage's folder of a run, or one of its checkpoints; with an endpoint, the
            model's name there.
        name: name of the folder of its answers; where empty, made of the last two parts of the path.
        endpoint: base URL of an OpenAI-compatible server that answers, such as `http://localhost:8000/v1`; where empty,
            this program does.
    """

    path: str = ""
    name: str = ""
    endpoint: str = ""

    def __post_init__(self) -> None:
        if not self.name and self.path:
            parts = [part for part in Path(self.path).parts if part not in ("/", ".", "..", "checkpoints")]
            self.name = "-".join(parts[-2:])


@dataclass(slots=True)
class Suite:
    """Rows that are answered and reported together.

    Attributes:
        name: name of its files and of its lines in the tables; where empty, that of its first file.
        sources: its files; weights have no effect.
        kinds: kinds of rows to use; all where empty.
        tasks: tasks of rows to use; all where empty.
        domain: in or out of the domain of training.
        benchmark: the benchmark whose published file is the only source; None for files of rows.
        any_file: accept a file of the benchmark that is not a published one; the manifest says which it is.
        instruction: text below each question of a benchmark, which published figures do not have; such as one that asks
            for `<think>` and `<answer>`, for models that were trained with it.
    """

    name: str = ""
    sources: list[Source] = field(default_factory=list)
    kinds: tuple[Kind, ...] = ()
    tasks: tuple[Task, ...] = ()
    domain: SuiteDomain = SuiteDomain.IN
    benchmark: BenchmarkName | None = None
    any_file: bool = False
    instruction: str = ""

    def __post_init__(self) -> None:
        if not self.name and self.benchmark:
            self.name = self.benchmark.value
        if not self.name and self.sources:
            self.name = Path(self.sources[0].file).stem


def _greedy() -> Sampling:
    return Sampling(group_size=1, temperature=0.0)


@dataclass(slots=True)
class Evaluation:
    """All settings of an evaluation.

    Attributes:
        name: name of the default output folder.
        seed: seed of sampled answers, of random samples of rows, and of shuffled images.
        models: models to evaluate.
        suites: suites of rows.
        images: images to evaluate with; each makes answers files of its own.
        scorer: `OFFICIAL` adds the authors' lenient verdicts.
        extraction: how benchmarks read answers.
        judge: model that reads and grades what no rule can, in benchmarks; by default there is none.
        template: prompt template: a name of `data.prompts.TEMPLATES`, or `package.module:NAME`.
        world: folder of the embedded world, drawn there if missing; none where empty.
        dtype: dtype of parameters, activations and products; the checkpoint's where empty.
        min_pixels: area that smaller images are enlarged to; 0 for the checkpoint's own.
        max_pixels: area that larger images are shrunk to; 0 for the checkpoint's own.
        mesh: axes of the device mesh.
        batch_size: rows that are answered at a time, over all hosts; rounded up to what the devices divide.
        sampling: decoding; `group_size` is the number of completions of a row.
        aliases: label -> the label it stands for, both in lower case with single spaces.
        maths: limits of math-verify.
        endpoint: how servers are asked, and what that may cost.
        allow_leaks: evaluate also on rows whose images a model was trained on.
        threads: threads per host that read images.
    """

    name: str = "eval"
    seed: int = 0
    models: list[EvaluatedModel] = field(default_factory=list)
    suites: list[Suite] = field(default_factory=list)
    images: tuple[ImageCondition, ...] = (ImageCondition.ORIGINAL,)
    scorer: ScorerName = ScorerName.RULES
    extraction: Extraction = Extraction.READABLE
    judge: Judge = field(default_factory=Judge)
    template: str = "paper"
    world: str = ""
    dtype: str = ""
    min_pixels: int = 0
    max_pixels: int = Pretrained().max_pixels
    mesh: MeshShape = field(default_factory=MeshShape)
    batch_size: int = 32
    sampling: Sampling = field(default_factory=_greedy)
    aliases: dict[str, str] = field(default_factory=dict)
    maths: Maths = field(default_factory=Maths)
    endpoint: EndpointLimits = field(default_factory=EndpointLimits)
    allow_leaks: bool = False
    threads: int = 4


def validate_evaluation(evaluation: Evaluation) -> None:
    """Refuses impossible settings of an evaluation.

    Raises:
        ValueError: naming the setting and the values it takes.
    """
    refuse_wrong_types("config", evaluation, Evaluation)
    validate_sampling(evaluation.sampling)
    refuse("config", _settings(evaluation))
    validate_rewards(Rewards(aliases=evaluation.aliases, maths=evaluation.maths))


def _settings(evaluation: Evaluation) -> list[Demand]:
    sampling, mesh, images = evaluation.sampling, evaluation.mesh, evaluation.images
    axes = (mesh.data or 1, mesh.fsdp, mesh.tensor)
    return [
        (0 <= evaluation.seed < 2**31, "seed", evaluation.seed, "0 to 2147483647"),
        (bool(evaluation.models), "models", evaluation.models, "at least one model (--model=PATH)"),
        (bool(evaluation.suites), "suites", evaluation.suites, "at least one suite (--rows=FILE)"),
        *_names("models", [model.name for model in evaluation.models]),
        *_names("suites", [suite.name for suite in evaluation.suites]),
        *((bool(model.path), "models", model, "a path for each model") for model in evaluation.models),
        *(
            (bool(suite.sources), "suites", suite.name, "at least one file for each suite")
            for suite in evaluation.suites
        ),
        *(demand for suite in evaluation.suites if suite.benchmark for demand in _benchmark(suite, sampling)),
        (bool(images) and len(set(images)) == len(images), "images", images, "different ones, at least one"),
        (
            evaluation.dtype in ("", "bfloat16", "float32", "float16"),
            "dtype",
            evaluation.dtype,
            "a float's name, or ''",
        ),
        (evaluation.min_pixels >= 0, "min_pixels", evaluation.min_pixels, "0, for the checkpoint's own, or more"),
        (
            evaluation.max_pixels == 0 or evaluation.max_pixels >= max(1, evaluation.min_pixels),
            "max_pixels",
            evaluation.max_pixels,
            f"0, for the checkpoint's own, or at least min_pixels ({evaluation.min_pixels})",
        ),
        *(_sent_images(evaluation) if any(model.endpoint for model in evaluation.models) else ()),
        (
            is_mesh(axes),
            "mesh",
            (mesh.data, mesh.fsdp, mesh.tensor),
            "sizes (data, fsdp, tensor) from 1, of which one may be -1, and data 0",
        ),
        (evaluation.batch_size >= 1, "batch_size", evaluation.batch_size, "1 or more"),
        (evaluation.threads >= 1, "threads", evaluation.threads, "1 or more"),
        (
            sampling.group_size == 1 or sampling.temperature > 0,
            "sampling.temperature",
            sampling.temperature,
            "a positive number for several samples: greedy ones are all the same",
        ),
    ]


def _sent_images(evaluation: Evaluation) -> list[Demand]:
    """Demands on images for a server: resized ones, of which there are no files, or else the files as they are."""
    low, high, encoding = evaluation.min_pixels, evaluation.max_pixels, evaluation.endpoint.image_encoding
    return [
        (not low or high > 0, "min_pixels", low, "0 with max_pixels=0 and a server, which gets images as they are"),
        (
            encoding is not ImageEncoding.ORIGINAL or high == 0,
            "endpoint.image_encoding",
            encoding.value,
            f"png or jpeg for images that are resized to max_pixels ({high}); with max_pixels=0 they are not",
        ),
    ]


def _names(setting: str, names: list[str]) -> list[Demand]:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    folders = [name for name in names if "/" in name or not name.isprintable() or name in ("", ".", "..")]
    return [
        (not folders, setting, folders, "a name for each that a folder can have"),
        (not repeated, setting, ", ".join(repeated), "another name for each, such as name = ... in the config"),
    ]


def _benchmark(suite: Suite, sampling: Sampling) -> list[Demand]:
    files = [source.file for source in suite.sources]
    whole = all(source.sample == "all" for source in suite.sources)
    return [
        (len(files) == 1, "suites", files, f"one file, the published one, for the benchmark {suite.name}"),
        (whole and not suite.kinds and not suite.tasks, "suites", suite.name, "all rows of a benchmark"),
        (
            sampling.group_size == 1,
            "sampling.group_size",
            sampling.group_size,
            f"1 with a benchmark ({suite.name}), which is answered once",
        ),
    ]
