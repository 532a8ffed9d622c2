"""The table of published formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from currreft_jax.config import Kind
from currreft_jax.data.builders import chat, clevr, coco, columns, maths, refer, tables, voc
from currreft_jax.data.builders.items import BuildError, Dropped, Format, Item, Scene, Source, Wrong, each
from currreft_jax.data.fields import Fields
from currreft_jax.data.row_files import RowFile, parse_rows

# Below the rows and not among them, so that `*.jsonl` are rows.
SCENES = "material/scenes.jsonl"
WRONG = "material/wrong.jsonl"
_UNSAID = "no licence stated; ask the publisher"
_COCO = "annotations CC BY 4.0; the photographs are Flickr users'"


def built(source: Source) -> Iterator[Item]:
    """Rows of one folder that are built already, with the scenes and wrong answers below it."""
    paths = sorted(source.folder.glob("*.jsonl"))
    if not paths:
        below = ", ".join(sorted({str(path.parent) for path in source.folder.rglob("open-*.jsonl")}))
        raise BuildError(
            f"{source.folder} holds no *.jsonl" + (f"; make the stages of each of {below}" if below else "")
        )
    for path in paths:
        with RowFile(path) as file:
            found = parse_rows(file)
        yield from found.errors
        yield from (row if row.kind is Kind.OPEN else Dropped(row.id, "not an open row") for row in found.rows)
    scenes, wrong = source.folder / SCENES, source.folder / WRONG
    if scenes.exists():
        yield from each(tables.records(scenes), lambda record: [_scene(record, scenes)])
    if wrong.exists():
        yield from each(
            tables.records(wrong), lambda record: [Wrong(record.text("id"), record.texts("answers", "strings"))]
        )


def scene_keys(scene: Scene, image: str) -> dict[str, object]:
    """A line of `SCENES`."""
    return {
        "image": image,
        "frame": [scene.frame.width, scene.frame.height],
        "objects": [{"label": label, "box": list(box)} for label, box in scene.objects],
        "labels": sorted(scene.labels),
    }


def _scene(record: Fields, path: Path) -> Scene:
    objects = []
    frame = record.frame("frame")
    if frame is None:
        record.refuse_value("frame", "[width, height], in pixels")
    for entry in tables.items(record, "objects", "a list of objects"):
        if not isinstance(entry, Fields):
            raise entry
        box = entry.take("box", list, "four numbers")
        objects.append((entry.text("label"), (float(box[0]), float(box[1]), float(box[2]), float(box[3]))))
    image = str(path.parent.absolute() / record.text("image"))
    return Scene(image, frame, tuple(objects), frozenset(record.texts("labels", "strings")))


FORMATS: dict[str, Format] = {
    "refcoco": Format(
        refer.published,
        "detection",
        "instances.json, refs*.json (the published refs*.p as JSON), COCO's train2014 images",
        "github.com/lichengunc/refer",
        _COCO,
    ),
    "refcoco-jxu124": Format(
        refer.jxu124,
        "detection",
        "the parquet files, COCO's train2014 images",
        "huggingface.co/datasets/jxu124/refcoco, …/refcocoplus, …/refcocog",
        _COCO,
    ),
    "refcoco-lmms": Format(
        refer.lmms, "detection", "the parquet files", "huggingface.co/datasets/lmms-lab/RefCOCO", _COCO
    ),
    "vlm-r1": Format(
        refer.vlm_r1,
        "detection",
        "*.json or *.jsonl of rec_jsons_processed, COCO's train2014 images",
        "huggingface.co/datasets/omlab/VLM-R1",
        _COCO,
    ),
    "refgta": Format(
        refer.published,
        "detection",
        "instances.json, refs*.json (the published refs*.p as JSON), the images",
        "github.com/mikittt/easy-to-understand-REG",
        _UNSAID,
    ),
    "coco": Format(
        coco.convert, "detection, classify", "annotations/instances_*.json, the images", "cocodataset.org", _COCO
    ),
    "voc": Format(
        voc.convert,
        "detection, classify",
        "VOCdevkit: Annotations/*.xml, JPEGImages, and ImageSets/Main for --split",
        "host.robots.ox.ac.uk/pascal/VOC",
        "the photographs are Flickr users'",
    ),
    "mathv360k": Format(
        maths.conversations,
        "math",
        "train_samples_all_tuning.json, the images",
        "huggingface.co/datasets/Zhiqiang007/MathV360K",
        "Apache-2.0; each source under its own licence",
    ),
    "geo170k": Format(
        maths.conversations,
        "math",
        "qa_tuning.json or the parquet files, images.zip unpacked",
        "huggingface.co/datasets/Luckyjhg/Geo170K",
        _UNSAID,
    ),
    "open-r1-8k": Format(
        maths.problems,
        "math",
        "the parquet files",
        "huggingface.co/datasets/lmms-lab/multimodal-open-r1-8k-verified",
        _UNSAID,
    ),
    "geoqa-r1v": Format(
        maths.problems,
        "math",
        "the parquet files",
        "huggingface.co/datasets/leonardPKU/GEOQA_R1V_Train_8K",
        _UNSAID,
    ),
    "clevr-70k": Format(
        maths.problems,
        "math (counting)",
        "the parquet files",
        "huggingface.co/datasets/leonardPKU/clevr_cogen_a_train, …/BUAADreamer/clevr_count_70k",
        "CLEVR: CC BY 4.0",
    ),
    "clevr": Format(
        clevr.questions,
        "math (counting)",
        "*questions*.json of CLEVR or Super-CLEVR, the images",
        "cs.stanford.edu/people/jcjohns/clevr, github.com/Lizw14/Super-CLEVR",
        "CC BY 4.0",
    ),
    "clevr-scenes": Format(
        clevr.scenes,
        "math (counting)",
        "*.json scenes of CLEVR or Super-CLEVR, the images",
        "cs.stanford.edu/people/jcjohns/clevr, github.com/Lizw14/Super-CLEVR",
        "CC BY 4.0",
    ),
    "superclevr-r1v": Format(
        clevr.r1v,
        "math (counting)",
        "superclevr_test200_counting_problems.jsonl, the images",
        "github.com/Deep-Agent/R1-V",
        "Super-CLEVR: CC BY 4.0",
    ),
    "chat": Format(
        chat.llava,
        "conversations",
        "LLaVA conversations, *.json, *.jsonl or *.parquet: LLaVA-CoT-100k, LLaVA-OneVision-Data, Geo170K",
        "huggingface.co/datasets/Xkev/LLaVA-CoT-100k, …/lmms-lab/LLaVA-OneVision-Data",
        "Apache-2.0; each source under its own licence",
    ),
    "cauldron": Format(
        chat.cauldron,
        "conversations",
        "the parquet files of a subset",
        "huggingface.co/datasets/HuggingFaceM4/the_cauldron",
        "each source under its own licence",
    ),
    "scienceqa": Format(
        chat.science_qa,
        "conversations",
        "problems.json and images/, or the parquet files",
        "github.com/lupantech/ScienceQA, huggingface.co/datasets/derek-thomas/ScienceQA",
        "CC BY-NC-SA 4.0",
    ),
    "visual7w": Format(
        chat.visual7w,
        "conversations",
        "dataset_v7w_telling.json, the images",
        "ai.stanford.edu/~yukez/visual7w",
        _UNSAID,
    ),
    "vsr": Format(
        chat.vsr,
        "conversations",
        "*.jsonl, COCO's images",
        "github.com/cambridgeltl/visual-spatial-reasoning",
        "annotations Apache-2.0; the photographs are Flickr users'",
    ),
    "geomverse": Format(
        chat.geomverse,
        "math; conversations with --kind=chat",
        "*.jsonl, the images",
        "github.com/google-deepmind/geomverse",
        _UNSAID,
    ),
    "text": Format(
        chat.text_only,
        "conversations",
        "*.parquet or *.jsonl with question and solution",
        "huggingface.co/datasets/simplescaling/s1K-1.1",
        _UNSAID,
    ),
    "table": Format(
        columns.convert,
        "what --task and --kind say",
        "*.csv, *.tsv, *.json, *.jsonl or *.parquet; --column maps their columns",
        "your own",
        "",
    ),
    "stages": Format(
        built, "judge and choice rows", "open-*.jsonl that `build` wrote, and material/ beside them", "your own", ""
    ),
}


def format_of(name: str) -> Format:
    """A format of the table.

    Raises:
        BuildError: there is none of that name; the message lists those there are.
    """
    if name not in FORMATS:
        raise BuildError(f"no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]
