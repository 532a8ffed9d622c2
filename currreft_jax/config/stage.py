"""Settings of a stage of training."""

from dataclasses import dataclass, field
from enum import Enum

from currreft_jax.config.data import Kind, Source, Task
from currreft_jax.config.evaluation import SuiteDomain
from currreft_jax.config.method import LossAverage, Method, Optimizer
from currreft_jax.config.rejection import Rejection

REJECT = "reject"  # folder of rejected sampling in the workdir


class Handover(Enum):
    """Optimizer state at the start of a stage that follows another: reset, or kept with the schedule restarted."""

    RESET = "reset"
    KEEP = "keep"


@dataclass(slots=True)
class Stage:
    """One stage of the curriculum.

    Attributes:
        name: stage name, also of its folder and its metrics.
        sources: files to mix; with `rejection` they may be none.
        steps: number of steps.
        kinds: kinds of rows to use; all where empty.
        tasks: tasks of rows to use; all where empty.
        replay: share of the batches that comes from the sources of earlier stages.
        held_out: held-out rows, evaluated in this stage and in all later ones.
        out_of_domain: rows out of the stage's domain, evaluated whenever the held-out rows are. They are measured
            alone: no gate and no choice of a checkpoint looks at them.
        moments: optimizer state at the start, after another stage.
        learning_rate: overrides the optimizer's; 0 for the optimizer's.
        promote_above: promotion gate: the stage ends early once the share of held-out rows with full accuracy is above
            it with 97.5% confidence; 1 for no gate.
        held_out_loss: held-out rows with gold answers, of which the loss is measured at the start and at every
            evaluation; for supervised training.
        rejection: rejected sampling before the stage, with the model of the stage before it where it names none. The
            stage trains on the kept rows, too, and measures the loss of those that are held out.
        forgetting_margin: forgetting gate of a last stage. If at its end a set of held-out rows has fallen, the best of
            the start and of the evaluated steps is the run's model. A set has fallen if its mean reward is below that
            of the start by more than this, and significantly so: the 95% interval of the paired difference is below 0.
            None for no gate.
        method: overrides the run's, as do the settings below; None for the run's.
        loss_average: overrides `loss_average`.
        microbatches: overrides `microbatches`.
        batch_size: overrides `data.batch_size`; evaluations keep the run's batches.
        optimizer: overrides `optimizer` as a whole.
        evaluate_every: overrides `logging.evaluate_every`.
    """

    name: str = "train"
    sources: list[Source] = field(default_factory=list)
    steps: int = 1000
    kinds: tuple[Kind, ...] = ()
    tasks: tuple[Task, ...] = ()
    replay: float = 0.0
    held_out: list[Source] = field(default_factory=list)
    moments: Handover = Handover.RESET
    learning_rate: float = 0.0
    promote_above: float = 1.0
    held_out_loss: list[Source] = field(default_factory=list)
    rejection: Rejection | None = None
    forgetting_margin: float | None = None
    method: Method | None = None
    loss_average: LossAverage | None = None
    microbatches: int | None = None
    batch_size: int | None = None
    optimizer: Optimizer | None = None
    evaluate_every: int | None = None
    out_of_domain: list[Source] = field(default_factory=list)

    @property
    def evaluated(self) -> dict[SuiteDomain, list[Source]]:
        """Files of the rows that every evaluation answers, without domains that have none."""
        files = {SuiteDomain.IN: self.held_out, SuiteDomain.OUT: self.out_of_domain}
        return {domain: sources for domain, sources in files.items() if sources}

    @property
    def files(self) -> list[Source]:
        """All files that the stage reads when it begins."""
        asked = self.rejection.sources if self.rejection else []
        evaluated = [*self.held_out, *self.out_of_domain, *self.held_out_loss]
        return [*self.sources, *evaluated, *(quota.source for quota in asked)]
