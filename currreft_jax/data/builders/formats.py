"""The table of published formats."""

from __future__ import annotations

from currreft_jax.data.builders import chat, clevr, coco, custom_table, material_files, math_qa, refer, voc
from currreft_jax.data.builders.converter import BuildError, DatasetFormat

_NO_LICENCE = "no licence stated; ask the publisher"
_COCO = "annotations CC BY 4.0; the photographs are Flickr users'"

FORMATS: dict[str, DatasetFormat] = {
    "refcoco": DatasetFormat(
        refer.convert_refer,
        "detection",
        "instances.json, refs*.json (the published refs*.p as JSON), COCO's train2014 images",
        "github.com/lichengunc/refer",
        _COCO,
    ),
    "refcoco-jxu124": DatasetFormat(
        refer.convert_jxu124,
        "detection",
        "the parquet files, COCO's train2014 images",
        "huggingface.co/datasets/jxu124/refcoco, …/refcocoplus, …/refcocog",
        _COCO,
    ),
    "refcoco-lmms": DatasetFormat(
        refer.convert_lmms, "detection", "the parquet files", "huggingface.co/datasets/lmms-lab/RefCOCO", _COCO
    ),
    "vlm-r1": DatasetFormat(
        refer.convert_vlm_r1,
        "detection",
        "*.json or *.jsonl of rec_jsons_processed, COCO's train2014 images",
        "huggingface.co/datasets/omlab/VLM-R1",
        _COCO,
    ),
    "refgta": DatasetFormat(
        refer.convert_refer,
        "detection",
        "instances.json, refs*.json (the published refs*.p as JSON), the images",
        "github.com/mikittt/easy-to-understand-REG",
        _NO_LICENCE,
    ),
    "coco": DatasetFormat(
        coco.convert_coco, "detection, classify", "annotations/instances_*.json, the images", "cocodataset.org", _COCO
    ),
    "voc": DatasetFormat(
        voc.convert_voc,
        "detection, classify",
        "VOCdevkit: Annotations/*.xml, JPEGImages, and ImageSets/Main for --split",
        "host.robots.ox.ac.uk/pascal/VOC",
        "the photographs are Flickr users'",
    ),
    "mathv360k": DatasetFormat(
        math_qa.convert_conversations,
        "math",
        "train_samples_all_tuning.json, the images",
        "huggingface.co/datasets/Zhiqiang007/MathV360K",
        "Apache-2.0; each source under its own licence",
    ),
    "geo170k": DatasetFormat(
        math_qa.convert_conversations,
        "math",
        "qa_tuning.json or the parquet files, images.zip unpacked",
        "huggingface.co/datasets/Luckyjhg/Geo170K",
        _NO_LICENCE,
    ),
    "open-r1-8k": DatasetFormat(
        math_qa.convert_problems,
        "math",
        "the parquet files",
        "huggingface.co/datasets/lmms-lab/multimodal-open-r1-8k-verified",
        _NO_LICENCE,
    ),
    "geoqa-r1v": DatasetFormat(
        math_qa.convert_problems,
        "math",
        "the parquet files",
        "huggingface.co/datasets/leonardPKU/GEOQA_R1V_Train_8K",
        _NO_LICENCE,
    ),
    "clevr-70k": DatasetFormat(
        math_qa.convert_problems,
        "math (counting)",
        "the parquet files",
        "huggingface.co/datasets/leonardPKU/clevr_cogen_a_train, …/BUAADreamer/clevr_count_70k",
        "CLEVR: CC BY 4.0",
    ),
    "clevr": DatasetFormat(
        clevr.convert_questions,
        "math (counting)",
        "*questions*.json of CLEVR or Super-CLEVR, the images",
        "cs.stanford.edu/people/jcjohns/clevr, github.com/Lizw14/Super-CLEVR",
        "CC BY 4.0",
    ),
    "clevr-scenes": DatasetFormat(
        clevr.convert_scenes,
        "math (counting)",
        "*.json scenes of CLEVR or Super-CLEVR, the images",
        "cs.stanford.edu/people/jcjohns/clevr, github.com/Lizw14/Super-CLEVR",
        "CC BY 4.0",
    ),
    "superclevr-r1v": DatasetFormat(
        clevr.convert_r1v,
        "math (counting)",
        "superclevr_test200_counting_problems.jsonl, the images",
        "github.com/Deep-Agent/R1-V",
        "Super-CLEVR: CC BY 4.0",
    ),
    "chat": DatasetFormat(
        chat.convert_llava,
        "conversations",
        "LLaVA conversations, *.json, *.jsonl or *.parquet: LLaVA-CoT-100k, LLaVA-OneVision-Data, Geo170K",
        "huggingface.co/datasets/Xkev/LLaVA-CoT-100k, …/lmms-lab/LLaVA-OneVision-Data",
        "Apache-2.0; each source under its own licence",
    ),
    "cauldron": DatasetFormat(
        chat.convert_cauldron,
        "conversations",
        "the parquet files of a subset",
        "huggingface.co/datasets/HuggingFaceM4/the_cauldron",
        "each source under its own licence",
    ),
    "scienceqa": DatasetFormat(
        chat.convert_science_qa,
        "conversations",
        "problems.json and images/, or the parquet files",
        "github.com/lupantech/ScienceQA, huggingface.co/datasets/derek-thomas/ScienceQA",
        "CC BY-NC-SA 4.0",
    ),
    "visual7w": DatasetFormat(
        chat.convert_visual7w,
        "conversations",
        "dataset_v7w_telling.json, the images",
        "ai.stanford.edu/~yukez/visual7w",
        _NO_LICENCE,
    ),
    "vsr": DatasetFormat(
        chat.convert_vsr,
        "conversations",
        "*.jsonl, COCO's images",
        "github.com/cambridgeltl/visual-spatial-reasoning",
        "annotations Apache-2.0; the photographs are Flickr users'",
    ),
    "geomverse": DatasetFormat(
        chat.convert_geomverse,
        "math; conversations with --kind=chat",
        "*.jsonl, the images",
        "github.com/google-deepmind/geomverse",
        _NO_LICENCE,
    ),
    "text": DatasetFormat(
        chat.convert_text,
        "conversations",
        "*.parquet or *.jsonl with question and solution",
        "huggingface.co/datasets/simplescaling/s1K-1.1",
        _NO_LICENCE,
    ),
    "table": DatasetFormat(
        custom_table.convert_table,
        "what --task and --kind say",
        "*.csv, *.tsv, *.json, *.jsonl or *.parquet; --column maps their columns",
        "your own",
        "",
    ),
    "stages": DatasetFormat(
        material_files.convert_built_rows,
        "judge and choice rows",
        "open-*.jsonl that `build` wrote, and material/ beside them",
        "your own",
        "",
    ),
}


def find_format(name: str) -> DatasetFormat:
    """Returns a format by its name.

    Raises:
        BuildError: no format has the name; the message lists all names.
    """
    if name not in FORMATS:
        raise BuildError(f"no format {name!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]
