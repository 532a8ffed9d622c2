"""The page of scenes of docs/world.png."""

from collections.abc import Sequence

from PIL import Image

from currreft_jax.world.scenes import SIZE, Scene, render_image

GAP = 4


def contact_sheet(scenes: Sequence[Scene], columns: int) -> Image.Image:
    """The scenes as one image, row by row."""
    rows = -(-len(scenes) // columns)
    sheet = Image.new("RGB", (columns * (SIZE + GAP) - GAP, rows * (SIZE + GAP) - GAP), "white")
    for position, scene in enumerate(scenes):
        y, x = divmod(position, columns)
        sheet.paste(render_image(scene), (x * (SIZE + GAP), y * (SIZE + GAP)))
    return sheet
