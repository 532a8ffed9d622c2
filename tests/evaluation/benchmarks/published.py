"""Small files of each benchmark in its published form."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

from currreft_jax.config import BenchmarkName, Source, Suite
from tests import tiny

Record = dict[str, Any]


def image_cell(number: int) -> str:
    buffer = io.BytesIO()
    tiny.picture(40 + number, 30, seed=number).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def choice_records() -> list[Record]:
    """MMBench: two questions of four options with their rotations, one of two; hints in one of them."""
    options, gold = ["cat", "dog", "cow", "hen"], "BADC"
    records = []
    for question in range(2):
        for turn in range(4):
            turned = [options[(k + turn) % 4] for k in range(4)]
            right = options["ABCD".index(gold[question])]
            record = {"index": question + turn * 1_000_000, "image": image_cell(question) if not turn else question}
            record |= {"question": f"Which animal is number {question}?", "hint": "Look." if question else ""}
            record |= dict(zip("ABCD", turned, strict=True)) | {"answer": "ABCD"[turned.index(right)]}
            records.append(record | {"category": "animals", "l2-category": "perception", "split": "dev"})
    for turn, (first, second) in enumerate((("yes", "no"), ("no", "yes"))):
        record = {"index": 2 + turn * 1_000_000, "image": image_cell(2) if not turn else 2}
        record |= {"question": "Is it day?", "hint": "", "A": first, "B": second, "C": "", "D": ""}
        record |= {"answer": "AB"[turn], "category": "scenes", "l2-category": "perception", "split": "dev"}
        records.append(record)
    return records


def records_of(name: BenchmarkName) -> list[Record]:
    if name is BenchmarkName.MMBENCH:
        return choice_records()
    if name is BenchmarkName.AI2D:
        columns = ("index", "image", "question", "A", "B", "C", "D", "answer", "category")
        return [{key: one[key] for key in columns} for one in choice_records() if one["index"] < 1_000_000]
    columns: list[Record] = {
        BenchmarkName.MATHVISTA: [
            {
                **{"question": "Question: How many?\nChoices:\n(A) 2\n(B) 3", "choices": "['2', '3']", "answer": "3"},
                **{"answer_option": "B", "question_type": "multi_choice", "answer_type": "text"},
                **{"task": "figure question answering", "skills": "['arithmetic reasoning', 'logical reasoning']"},
            },
            {
                **{"question": "Hint: a whole number.\nQuestion: How long?", "choices": "", "answer": "14"},
                **{"answer_option": "", "question_type": "free_form", "answer_type": "integer"},
                **{"task": "math word problem", "skills": "['arithmetic reasoning']"},
            },
            {
                **{"question": "How wide?", "choices": "", "answer": "1.2"},
                **{"answer_option": "", "question_type": "free_form", "answer_type": "float"},
                **{"task": "math word problem", "skills": "numeric commonsense"},
            },
        ],
        BenchmarkName.MMVET: [
            {"question": "What is x?", "answer": "-1<AND>-5", "category": "ocr,math"},
            {"question": "What is it?", "answer": "a jug<OR>a jar", "category": "rec"},
        ],
        BenchmarkName.OCRBENCH: [
            {"question": "what is written?", "answer": "['CENTRE', 'Center']", "category": "Regular Text Recognition"},
            {
                **{"question": "Write the formula.", "answer": "['x ^ 2 + Y']"},
                "category": "Handwritten Mathematical Expression Recognition",
            },
        ],
        BenchmarkName.LLAVABENCH: [
            {
                **{"question": f"What is in picture {k}?", "caption": "A house by a lake.", "gpt4_ans": "A house."},
                "category": category,
            }
            for k, category in enumerate(("conv", "detail", "complex"))
        ],
        BenchmarkName.MATH: [
            {
                **{"problem": "What is $1 + 1/2$?", "solution": r"It is $\boxed{\frac{3}{2}}$.", "subject": "Algebra"},
                **{"answer": r"\frac{3}{2}", "level": 1, "unique_id": "test/algebra/1.json"},
            },
            {
                **{"problem": "Factor $x^2 - 1$.", "solution": "…", "subject": "Precalculus"},
                **{"answer": "(x - 1)(x + 1)", "level": 5, "unique_id": "test/precalculus/2.json"},
            },
        ],
    }[name]
    if name is BenchmarkName.MATH:
        return columns
    return [{"index": k, "image": image_cell(k), **record} for k, record in enumerate(columns, 1)]


def write_benchmark(folder: Path, name: BenchmarkName, records: list[Record] | None = None) -> Path:
    """Writes a file as it is published: a table, or JSON lines for MATH-500."""
    folder.mkdir(parents=True, exist_ok=True)
    records = records or records_of(name)
    if name is BenchmarkName.MATH:
        path = folder / "test.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path
    path = folder / f"{name.value}.tsv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return path


def suite_of(path: Path, name: BenchmarkName, **settings) -> Suite:
    return Suite(sources=[Source(str(path))], benchmark=name, **{"any_file": True} | settings)
