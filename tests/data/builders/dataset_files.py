"""Writes small data sets of the published schemas, and reads the rows built from them."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from currreft_jax.data.row_files import RowFile, parse_rows

RED = (255, 0, 0)


def write_image(path: Path, width: int, height: int, box=None, shade: int = 90) -> Path:
    """Writes an image, with the pixels of a half-open box in red."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, 3), shade, np.uint8)
    # Pixels that encode the file name: splits compare the content of files.
    pixels[0, : len(path.name) % width] = len(path.name)
    pixels[1, :8] = np.frombuffer(path.name.rjust(24, "-").encode()[-24:], np.uint8).reshape(8, 3)
    if box:
        x1, y1, x2, y2 = box
        pixels[y1:y2, x1:x2] = RED
    Image.fromarray(pixels).save(path)
    return path


def png_bytes(width: int = 32, height: int = 24, shade: int = 90) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def find_red_box(image: Image.Image) -> tuple[int, int, int, int]:
    """Returns the half-open box of the red pixels."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 170) & (pixels[..., 1] < 85)
    ys, xs = np.nonzero(red)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def write_json(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")
    return path


def write_json_lines(path: Path, records) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def voc_object(name: str, box, difficult: int = 0, parts: str = "") -> str:
    """Returns an object of VOC's XML for a half-open 0-based box, which the XML states inclusive and 1-based."""
    x1, y1, x2, y2 = box
    corners = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox>{parts}</object>"


def write_voc_image(folder: Path, name: str, width: int, height: int, objects, box=None) -> None:
    write_image(folder / "JPEGImages" / f"{name}.png", width, height, box)
    xml = (
        f"<annotation><filename>{name}.png</filename><size><width>{width}</width><height>{height}</height>"
        f"<depth>3</depth></size>{''.join(objects)}</annotation>"
    )
    path = folder / "Annotations" / f"{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(xml, "utf-8")


def coco_instances(images, annotations, categories) -> dict:
    """Returns a COCO instances file of images (id, file, width, height) and annotations (id, image, category, xywh)."""
    return {
        "images": [
            {"id": id, "file_name": name, "width": width, "height": height} for id, name, width, height in images
        ],
        "annotations": [
            {"id": id, "image_id": image, "category_id": category, "bbox": list(box), "iscrowd": 0, "area": 1.0}
            for id, image, category, box in annotations
        ],
        "categories": [{"id": id, "name": name} for id, name in categories.items()],
    }


def write_coco_set(folder: Path, count: int, split: str = "train") -> None:
    """Writes a COCO set with refs: each image has two dogs, a cat or a bird, and often a vehicle or a chair."""
    categories = {1: "dog", 2: "cat", 3: "bird", 4: "car", 5: "bus", 6: "boat", 7: "chair"}
    images, annotations, refs = [], [], []
    for index in range(count):
        name, width, height = f"{split}{index:05d}.png", 160 + index % 7, 120 + index % 5
        write_image(folder / "images" / name, width, height, shade=60 + index % 120)
        images.append((index, name, width, height))
        boxes = [(1, (5, 10, 40, 30)), (1, (100, 60, 45, 50)), (2 + index % 2, (60, 5, 35, 40))]
        boxes += [(4 + index % 4, (8, 70, 60, 40))] * (index % 3 > 0)
        for position, (category, box) in enumerate(boxes):
            annotations.append((index * 10 + position, index, category, box))
        refs.append(
            {
                "ref_id": index,
                "ann_id": index * 10 + index % 2,
                "image_id": index,
                "category_id": 1,
                "file_name": name,
                "split": split,
                "sentences": [{"sent_id": index, "raw": "the dog", "sent": f"dog number {index}", "tokens": []}],
            }
        )
    write_json(folder / "instances.json", coco_instances(images, annotations, categories))
    write_json(folder / "refs(unc).json", refs)


def write_parquet(path: Path, records) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), path)
    return path


def read_rows(path: Path):
    """Reads a file of rows, all of which must be valid."""
    with RowFile(path) as file:
        checked = parse_rows(file)
    assert not checked.errors
    return checked.rows
