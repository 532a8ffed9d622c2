"""Settings of rejected-sample self-improvement: rows with quotas, the model that answers, and who judges."""

from dataclasses import dataclass, field
from pathlib import Path

from currreft_jax.config.checks import Demand, refuse, refuse_wrong_types
from currreft_jax.config.data import Source
from currreft_jax.config.endpoint import EndpointLimits
from currreft_jax.config.evaluation import EvaluatedModel, Evaluation, Suite, validate_evaluation
from currreft_jax.config.judge import Judge
from currreft_jax.config.model import MeshShape, Pretrained
from currreft_jax.config.rewards import Rewards, validate_rewards
from currreft_jax.config.sampling import Sampling


@dataclass(slots=True)
class QuotaSource:
    """A file of rows, and how many of its rows are to be kept.

    Attributes:
        name: name in provenance, tables and errors; where empty, that of its file.
        source: its file; its weight has no effect.
        quota: rows to keep; 0 for all that pass.
        group: heading in the tables, such as maths.
    """

    name: str = ""
    source: Source = field(default_factory=Source)
    quota: int = 0
    group: str = ""

    def __post_init__(self) -> None:
        if not self.name and self.source.file:
            self.name = Path(self.source.file).stem


def _sampled() -> Sampling:
    return Sampling(group_size=4, temperature=1.0)


@dataclass(slots=True)
class Rejection:
    """All settings of rejected-sample self-improvement.

    Attributes:
        name: name of the default output folder.
        seed: seed of sampled answers, of the order of rows, and of all other choices; None for that of the run which
            this is a stage of, or for 0 without a run.
        model: the model that answers.
        sources: files of rows, with quotas.
        max_samples: answers to a row at most, a multiple of `sampling.group_size`; the rows of a source that falls
            short are answered again, `sampling.group_size` more answers to a row each time.
        threshold: the best answer of a row is kept if its overall score is above it.
        require_rules: also drop answers that the rewards' rules find wrong, where the row's gold answer can be checked.
        judge: who scores the answers.
        second_judge: scores a share of the answers again, to measure agreement; None for no second judge.
        second_share: that share, 0 to 1.
        calibration_rows: rows whose correct and planted wrong answers are judged, to calibrate the threshold.
        held_out: share of the kept rows that goes to the held-out file.
        suites: evaluation suites that the kept rows must not share images with.
        template: prompt template: a name of `data.prompts.TEMPLATES`, or `package.module:NAME`.
        world: folder of the embedded world, drawn there if missing; none where empty.
        dtype: dtype of parameters, activations and products; the checkpoint's where empty.
        min_pixels: area that smaller images are enlarged to; 0 for the checkpoint's own.
        max_pixels: area that larger images are shrunk to; 0 for the checkpoint's own.
        mesh: axes of the device mesh.
        batch_size: rows of a batch over all hosts; rounded up to a multiple of the devices.
        sampling: decoding; `group_size` answers to a row at first.
        rewards: of the rules that judge, and of `require_rules`.
        endpoint: how the server of `model` is asked, and what that may cost.
        budget: calls of all servers together at most: for answers, for the judge and for the second judge, with
            repeated calls and those of interrupted runs of the job; None for no limit.
        threads: threads per host that read images.
    """

    name: str = "reject"
    seed: int | None = None
    model: EvaluatedModel = field(default_factory=EvaluatedModel)
    sources: list[QuotaSource] = field(default_factory=list)
    max_samples: int = 16
    threshold: float = 85.0
    require_rules: bool = True
    judge: Judge = field(default_factory=Judge)
    second_judge: Judge | None = None
    second_share: float = 0.1
    calibration_rows: int = 50
    held_out: float = 0.1
    suites: list[Suite] = field(default_factory=list)
    template: str = "paper"
    world: str = ""
    dtype: str = ""
    min_pixels: int = 0
    max_pixels: int = Pretrained().max_pixels
    mesh: MeshShape = field(default_factory=MeshShape)
    batch_size: int = 32
    sampling: Sampling = field(default_factory=_sampled)
    rewards: Rewards = field(default_factory=Rewards)
    endpoint: EndpointLimits = field(default_factory=EndpointLimits)
    budget: int | None = None
    threads: int = 4

    @property
    def chosen_seed(self) -> int:
        """The seed, or 0 where none is set."""
        return self.seed or 0


def as_evaluation(rejection: Rejection, suites: list[Suite]) -> Evaluation:
    """Returns the settings by which the model answers the rows of suites."""
    return Evaluation(
        name=rejection.name,
        seed=rejection.chosen_seed,
        models=[rejection.model],
        suites=suites,
        template=rejection.template,
        world=rejection.world,
        dtype=rejection.dtype,
        min_pixels=rejection.min_pixels,
        max_pixels=rejection.max_pixels,
        mesh=rejection.mesh,
        batch_size=rejection.batch_size,
        sampling=rejection.sampling,
        aliases=rejection.rewards.aliases,
        maths=rejection.rewards.maths,
        endpoint=rejection.endpoint,
        threads=rejection.threads,
    )


def source_suites(rejection: Rejection) -> list[Suite]:
    """Returns the sources as suites, whose rows are answered."""
    return [Suite(source.name, [source.source]) for source in rejection.sources]


def validate_rejection(rejection: Rejection) -> None:
    """Refuses impossible settings of rejected sampling.

    Raises:
        ValueError: naming the setting and the values it takes.
    """
    refuse_wrong_types("config", rejection, Rejection)
    refuse("config", _settings(rejection))
    validate_evaluation(as_evaluation(rejection, source_suites(rejection)))
    validate_rewards(rejection.rewards)


def _settings(rejection: Rejection) -> list[Demand]:
    group_size, max_samples = rejection.sampling.group_size, rejection.max_samples
    names = [source.name for source in rejection.sources]
    unnamed = [name for name in names if not name.isprintable() or not name]
    return [
        (bool(rejection.model.path), "model.path", repr(rejection.model.path), "a model (--model=PATH)"),
        (bool(rejection.sources), "sources", rejection.sources, "at least one source (--rows=FILE)"),
        (not unnamed, "sources", names, "a name for each source"),
        (len(set(names)) == len(names), "sources", ", ".join(names), "another name for each source"),
        *(
            (source.quota >= 0, "sources", f"{source.name}: quota {source.quota}", "quotas of 0, for all, or more")
            for source in rejection.sources
        ),
        *(
            (bool(source.source.file), "sources", f"{source.name}, without a file", "a file for each source")
            for source in rejection.sources
        ),
        (
            max_samples >= group_size and max_samples % max(1, group_size) == 0,
            "max_samples",
            max_samples,
            f"a multiple of sampling.group_size ({group_size})",
        ),
        (0 <= rejection.threshold < 100, "threshold", rejection.threshold, "a score in [0, 100)"),
        (0 < rejection.second_share <= 1, "second_share", rejection.second_share, "a share in (0, 1]"),
        (rejection.calibration_rows >= 0, "calibration_rows", rejection.calibration_rows, "0, for none, or more"),
        (rejection.budget is None or rejection.budget >= 0, "budget", rejection.budget, "0 or more calls"),
        (0 <= rejection.held_out < 1, "held_out", rejection.held_out, "a share in [0, 1)"),
    ]
