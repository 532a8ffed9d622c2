"""Small files of the published schemas, drawn and written by the tests themselves."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

RED = (255, 0, 0)


def picture(path: Path, width: int, height: int, box=None, shade: int = 90) -> Path:
    """An image with a red rectangle over the pixels of a half-open box."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((height, width, 3), shade, np.uint8)
    # A corner of its own for each file: splits go by content.
    pixels[0, : len(path.name) % width] = len(path.name)
    pixels[1, :8] = np.frombuffer(path.name.rjust(24, "-").encode()[-24:], np.uint8).reshape(8, 3)
    if box:
        x1, y1, x2, y2 = box
        pixels[y1:y2, x1:x2] = RED
    Image.fromarray(pixels).save(path)
    return path


def encoded(width: int = 32, height: int = 24, shade: int = 90) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def red_box(image: Image.Image) -> tuple[int, int, int, int]:
    """The half-open box of the red pixels."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 170) & (pixels[..., 1] < 85)
    ys, xs = np.nonzero(red)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def write(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")
    return path


def write_lines(path: Path, records) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def voc_object(name: str, box, difficult: int = 0, parts: str = "") -> str:
    """An object of VOC's XML; the box is half-open and 0-based, the file's is inclusive and 1-based."""
    x1, y1, x2, y2 = box
    corners = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox>{parts}</object>"


def write_voc(folder: Path, name: str, width: int, height: int, objects, box=None) -> None:
    picture(folder / "JPEGImages" / f"{name}.png", width, height, box)
    xml = (
        f"<annotation><filename>{name}.png</filename><size><width>{width}</width><height>{height}</height>"
        f"<depth>3</depth></size>{''.join(objects)}</annotation>"
    )
    path = folder / "Annotations" / f"{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(xml, "utf-8")


def instances(images, annotations, categories) -> dict:
    """A COCO instances file: images as (id, file, width, height), annotations as (id, image, category, xywh)."""
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


def scene_set(folder: Path, count: int, split: str = "train") -> None:
    """A COCO set of `count` images with two dogs, one cat or bird, and sometimes a car; and refs to the dogs."""
    categories = {1: "dog", 2: "cat", 3: "bird", 4: "car", 5: "bus", 6: "boat", 7: "chair"}
    images, annotations, refs = [], [], []
    for number in range(count):
        name, width, height = f"{split}{number:05d}.png", 160 + number % 7, 120 + number % 5
        picture(folder / "images" / name, width, height, shade=60 + number % 120)
        images.append((number, name, width, height))
        boxes = [(1, (5, 10, 40, 30)), (1, (100, 60, 45, 50)), (2 + number % 2, (60, 5, 35, 40))]
        boxes += [(4 + number % 4, (8, 70, 60, 40))] * (number % 3 > 0)
        for place, (category, box) in enumerate(boxes):
            annotations.append((number * 10 + place, number, category, box))
        refs.append(
            {
                "ref_id": number,
                "ann_id": number * 10 + number % 2,
                "image_id": number,
                "category_id": 1,
                "file_name": name,
                "split": split,
                "sentences": [{"sent_id": number, "raw": "the dog", "sent": f"dog number {number}", "tokens": []}],
            }
        )
    write(folder / "instances.json", instances(images, annotations, categories))
    write(folder / "refs(unc).json", refs)


def write_parquet(path: Path, records) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(records)), path)
    return path
