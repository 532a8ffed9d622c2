"""The base and the stages of the curriculum, in and out of domain (Tables 1, 2 and 4a).

python -m currreft_jax.evaluate --config=configs/eval.py

The variant :tiny needs `make demo` first, and takes about three minutes on two CPU cores: judge, choice and open rows
of the world in domain, and open rows of each axis out of domain. The variants :3b and :7b answer the test rows of
`dataset build --recipe paper --out rows/paper`, and need the runs of `configs/curriculum.py`; they have not been run
yet. `--model=PATH,PATH` takes other models.
"""

from configs import common
from currreft_jax.config import (
    CacheType,
    EvaluatedModel,
    Evaluation,
    ImageCondition,
    Kind,
    MeshShape,
    Precision,
    Sampling,
    Source,
    Suite,
    SuiteDomain,
)

VARIANTS = common.VARIANTS

_STAGES = ("stage1", "stage2", "stage3", "self_improve")
_AXES = ("shapes", "colours", "pairs", "dark", "gradient", "noise", "counts", "straddle")


def get_config(variant: str | None = None) -> Evaluation:
    """Returns the settings of a variant: tiny, 3b or 7b."""
    variant = common.resolve_variant(variant)
    base = common.base("eval", variant).model
    run = "runs/demo" if variant == "tiny" else f"runs/curriculum-{variant}"
    config = Evaluation(
        name=f"eval-{variant}",
        models=[
            EvaluatedModel(base.path, "base"),
            *(EvaluatedModel(f"{run}/{stage}", stage) for stage in _STAGES),
        ],
        suites=_world_suites() if variant == "tiny" else _paper_suites(),
    )
    if variant == "tiny":
        config.images = (ImageCondition.ORIGINAL,)
        config.template = "world"
        config.world = common.WORLD
        config.max_pixels = 0
        config.mesh = MeshShape(data=-1, fsdp=1)
        config.batch_size = 64
        config.sampling = Sampling(
            group_size=1,
            temperature=0.0,
            max_new_tokens=48,
            segment=24,
            precision=Precision.FLOAT32,
            cache=CacheType.FLOAT32,
            prompt_lengths=(80,),
        )
    return config


def _world_suites() -> list[Suite]:
    in_domain = [
        Suite(f"in-{kind.value}", [Source(f"{common.WORLD}/test_{kind.value}.jsonl", sample="first:300")])
        for kind in (Kind.JUDGE, Kind.CHOICE, Kind.OPEN)
    ]
    out_of_domain = [
        Suite(
            f"out-{axis}",
            [Source(f"{common.WORLD}/test_{axis}_open.jsonl", sample="first:150")],
            domain=SuiteDomain.OUT,
        )
        for axis in _AXES
    ]
    return [*in_domain, *out_of_domain]


def _paper_suites() -> list[Suite]:
    in_domain = [f"in-{prefix}{task}" for prefix in ("", "judge-", "choice-") for task in common.TASKS]
    files = {
        SuiteDomain.IN: in_domain,
        SuiteDomain.OUT: [f"out-{task}" for task in common.TASKS],
    }
    return [
        Suite(name, [Source(f"{common.ROWS}/test/{name}.jsonl")], domain=domain)
        for domain, names in files.items()
        for name in names
    ]
