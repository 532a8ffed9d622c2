"""Rejected sampling: answers of the policy of stage 3 are judged, and the best ones kept to fine-tune on.

python -m currreft_jax.reject --config=configs/reject.py

The variant :tiny answers training rows of the world, of all kinds and tasks, and judges them by the rules, without a
network; it needs `make demo` first, or `--model=currreft_jax/world/base`. The variants :3b and :7b have the composition
of the paper, 1,520 rows: maths 700, 300 of them with an image, science 320 and general 500. They need the run of
`configs/curriculum.py`, the rows that docs/reject.md lists, and a judge at a server; they have not been run yet.
"""

from dataclasses import replace

from configs import common
from configs import eval as evaluation
from currreft_jax.config import (
    CacheType,
    EvaluatedModel,
    Judge,
    JudgeKind,
    Kind,
    MeshShape,
    Precision,
    QuotaSource,
    Rejection,
    Sampling,
    Source,
    Suite,
)

VARIANTS = common.VARIANTS

_TINY_QUOTA = 40
_ROWS = "rows/reject"
# Folder, group, quota and sample: the composition that the authors published. The images of all rows are read before
# the first answer, so that large sets are sampled: ten rows for each that is kept.
_PAPER = (
    ("geometry3k", "maths", 100, "all"),
    ("geo170k", "maths", 100, "random:1000"),
    ("geomverse", "maths", 100, "random:1000"),
    ("s1k-math", "maths", 400, "all"),
    ("scienceqa-cauldron", "science", 100, "random:1000"),
    ("scienceqa-nona", "science", 120, "random:1200"),
    ("s1k-science", "science", 100, "all"),
    ("llava-cot", "general", 300, "random:3000"),
    ("visual7w", "general", 100, "random:1000"),
    ("vsr", "general", 100, "random:1000"),
)
_JUDGE = Judge(JudgeKind.ENDPOINT, model="Qwen/Qwen2.5-VL-72B-Instruct", url="http://localhost:8000/v1")


def get_config(variant: str | None = None) -> Rejection:
    """Returns the settings of a variant: tiny, 3b or 7b."""
    variant = common.resolve_variant(variant)
    if variant != "tiny":
        return Rejection(
            name=f"reject-{variant}",
            model=EvaluatedModel(f"runs/curriculum-{variant}/stage3", "stage3"),
            sources=[
                QuotaSource(name, Source(f"{_ROWS}/{name}/chat.jsonl", sample=sample), quota, group)
                for name, group, quota, sample in _PAPER
            ],
            judge=_JUDGE,
            suites=_whole_suites(variant),
            sampling=Sampling(group_size=4, temperature=1.0, max_new_tokens=1024),
        )
    return Rejection(
        name="reject-tiny",
        model=EvaluatedModel("runs/demo/stage3", "stage3"),
        sources=[
            QuotaSource(kind.value, Source(f"{common.WORLD}/train_{kind.value}.jsonl", sample="first:320"), _TINY_QUOTA)
            for kind in (Kind.JUDGE, Kind.CHOICE, Kind.OPEN)
        ],
        suites=_whole_suites(variant),
        template="world",
        world=common.WORLD,
        max_pixels=0,
        mesh=MeshShape(data=-1, fsdp=1),
        sampling=Sampling(
            group_size=4,
            temperature=1.0,
            max_new_tokens=48,
            segment=24,
            precision=Precision.FLOAT32,
            cache=CacheType.FLOAT32,
            prompt_lengths=(80,),
        ),
    )


def _whole_suites(variant: str) -> list[Suite]:
    """Makes the suites of `configs/eval.py`, in and out of domain, with all rows of their files."""
    return [
        replace(suite, sources=[replace(source, sample="all") for source in suite.sources])
        for suite in evaluation.get_config(variant).suites
    ]
