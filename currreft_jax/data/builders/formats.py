"""The table of published formats."""

from __future__ import annotations

from currreft_jax.data.builders import chat, clevr, coco, custom_table, material_files, math_qa, refer, voc
from currreft_jax.data.builders.converter import BuildError, DatasetFormat

_NO_LICENCE = "no licence stated; ask the publisher"
_COCO = "annotations CC BY 4.0; the photographs are Flickr users'"

FORMATS: dict[str, DatasetFormat] = {
    "refcoco": DatasetFormat(
        convert=refer.convert_refer,
        output="detection",
        required_files="instances.json, refs*.json (the published refs*.p as JSON), COCO's train2014 images",
        homepage="github.com/lichengunc/refer",
        licence=_COCO,
    ),
    "refcoco-jxu124": DatasetFormat(
        convert=refer.convert_jxu124,
        output="detection",
        required_files="the parquet files, COCO's train2014 images",
        homepage="huggingface.co/datasets/jxu124/refcoco, …/refcocoplus, …/refcocog",
        licence=_COCO,
    ),
    "refcoco-lmms": DatasetFormat(
        convert=refer.convert_lmms,
        output="detection",
        required_files="the parquet files",
        homepage="huggingface.co/datasets/lmms-lab/RefCOCO",
        licence=_COCO,
    ),
    "vlm-r1": DatasetFormat(
        convert=refer.convert_vlm_r1,
        output="detection",
        required_files="*.json or *.jsonl of rec_jsons_processed, COCO's train2014 images",
        homepage="huggingface.co/datasets/omlab/VLM-R1",
        licence=_COCO,
    ),
    "refgta": DatasetFormat(
        convert=refer.convert_refer,
        output="detection",
        required_files="instances.json, refs*.json (the published refs*.p as JSON), the images",
        homepage="github.com/mikittt/easy-to-understand-REG",
        licence=_NO_LICENCE,
    ),
    "coco": DatasetFormat(
        convert=coco.convert_coco,
        output="detection, classify",
        required_files="annotations/instances_*.json, the images",
        homepage="cocodataset.org",
        licence=_COCO,
    ),
    "voc": DatasetFormat(
        convert=voc.convert_voc,
        output="detection, classify",
        required_files="VOCdevkit: Annotations/*.xml, JPEGImages, and ImageSets/Main for --split",
        homepage="host.robots.ox.ac.uk/pascal/VOC",
        licence="the photographs are Flickr users'",
    ),
    "mathv360k": DatasetFormat(
        convert=math_qa.convert_conversations,
        output="math",
        required_files="train_samples_all_tuning.json, the images",
        homepage="huggingface.co/datasets/Zhiqiang007/MathV360K",
        licence="Apache-2.0; each source under its own licence",
    ),
    "geo170k": DatasetFormat(
        convert=math_qa.convert_conversations,
        output="math",
        required_files="qa_tuning.json or the parquet files, images.zip unpacked",
        homepage="huggingface.co/datasets/Luckyjhg/Geo170K",
        licence=_NO_LICENCE,
    ),
    "open-r1-8k": DatasetFormat(
        convert=math_qa.convert_problems,
        output="math",
        required_files="the parquet files",
        homepage="huggingface.co/datasets/lmms-lab/multimodal-open-r1-8k-verified",
        licence=_NO_LICENCE,
    ),
    "geoqa-r1v": DatasetFormat(
        convert=math_qa.convert_problems,
        output="math",
        required_files="the parquet files",
        homepage="huggingface.co/datasets/leonardPKU/GEOQA_R1V_Train_8K",
        licence=_NO_LICENCE,
    ),
    "clevr-70k": DatasetFormat(
        convert=math_qa.convert_problems,
        output="math (counting)",
        required_files="the parquet files",
        homepage="huggingface.co/datasets/leonardPKU/clevr_cogen_a_train, …/BUAADreamer/clevr_count_70k",
        licence="CLEVR: CC BY 4.0",
    ),
    "clevr": DatasetFormat(
        convert=clevr.convert_questions,
        output="math (counting)",
        required_files="*questions*.json of CLEVR or Super-CLEVR, the images",
        homepage="cs.stanford.edu/people/jcjohns/clevr, github.com/Lizw14/Super-CLEVR",
        licence="CC BY 4.0",
    ),
    "clevr-scenes": DatasetFormat(
        convert=clevr.convert_scenes,
        output="math (counting)",
        required_files="*.json scenes of CLEVR or Super-CLEVR, the images",
        homepage="cs.stanford.edu/people/jcjohns/clevr, github.com/Lizw14/Super-CLEVR",
        licence="CC BY 4.0",
    ),
    "superclevr-r1v": DatasetFormat(
        convert=clevr.convert_r1v,
        output="math (counting)",
        required_files="superclevr_test200_counting_problems.jsonl, the images",
        homepage="github.com/Deep-Agent/R1-V",
        licence="Super-CLEVR: CC BY 4.0",
    ),
    "chat": DatasetFormat(
        convert=chat.convert_llava,
        output="conversations",
        required_files=(
            "conversations of LLaVA (LLaVA-CoT-100k, LLaVA-OneVision-Data, Geo170K) or ms-swift, *.json, *.jsonl or"
            " *.parquet"
        ),
        homepage="huggingface.co/datasets/Xkev/LLaVA-CoT-100k, …/lmms-lab/LLaVA-OneVision-Data",
        licence="Apache-2.0; each source under its own licence",
    ),
    "cauldron": DatasetFormat(
        convert=chat.convert_cauldron,
        output="conversations",
        required_files="the parquet files of a subset",
        homepage="huggingface.co/datasets/HuggingFaceM4/the_cauldron",
        licence="each source under its own licence",
    ),
    "scienceqa": DatasetFormat(
        convert=chat.convert_science_qa,
        output="conversations",
        required_files="problems.json and images/, or the parquet files",
        homepage="github.com/lupantech/ScienceQA, huggingface.co/datasets/derek-thomas/ScienceQA",
        licence="CC BY-NC-SA 4.0",
    ),
    "visual7w": DatasetFormat(
        convert=chat.convert_visual7w,
        output="conversations",
        required_files="dataset_v7w_telling.json, the images",
        homepage="ai.stanford.edu/~yukez/visual7w",
        licence=_NO_LICENCE,
    ),
    "vsr": DatasetFormat(
        convert=chat.convert_vsr,
        output="conversations",
        required_files="*.jsonl, COCO's images",
        homepage="github.com/cambridgeltl/visual-spatial-reasoning",
        licence="annotations Apache-2.0; the photographs are Flickr users'",
    ),
    "geomverse": DatasetFormat(
        convert=chat.convert_geomverse,
        output="math; conversations with --kind=chat",
        required_files="*.jsonl, the images",
        homepage="github.com/google-deepmind/geomverse",
        licence=_NO_LICENCE,
    ),
    "text": DatasetFormat(
        convert=chat.convert_text,
        output="conversations",
        required_files="*.parquet or *.jsonl with question and solution",
        homepage="huggingface.co/datasets/simplescaling/s1K-1.1",
        licence=_NO_LICENCE,
    ),
    "table": DatasetFormat(
        convert=custom_table.convert_table,
        output="what --task and --kind say",
        required_files="*.csv, *.tsv, *.json, *.jsonl or *.parquet; --column maps their columns",
        homepage="your own",
        licence="",
    ),
    "stages": DatasetFormat(
        convert=material_files.convert_built_rows,
        output="judge and choice rows",
        required_files="open-*.jsonl that `build` wrote, and material/ beside them",
        homepage="your own",
        licence="",
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
