"""The images that two models disagree about most, with what each says, as one picture."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw, ImageFont

from service.score.comparison import Comparison, Disagreement
from service.score.thumbnails import load_thumbnails

_SIDE, _MARGIN, _TEXT, _ACROSS = 160, 12, 44, 6
_PAPER, _INK, _GREY = (255, 255, 255), (20, 20, 20), (225, 225, 225)


def draw_contact_sheet(comparison: Comparison, *, column: str | None, max_bytes: int) -> bytes:
    """Returns a PNG of the worst disagreements, those both models are surest about first.

    An image that cannot be read any more is a grey square.

    Args:
        comparison: What to show.
        column: Of tables, as in the jobs.
        max_bytes: Images of more are not read.
    """
    worst = sorted(comparison.worst, reverse=True)
    paths = (one.path for one in worst)
    pictures = load_thumbnails(paths, _SIDE, column=column, max_bytes=max_bytes)
    across = min(_ACROSS, max(1, len(worst)))
    down = -(-len(worst) // across)
    cell_width, cell_height = _SIDE + _MARGIN, _SIDE + _TEXT + _MARGIN
    head = 28
    size = (across * cell_width + _MARGIN, head + down * cell_height + _MARGIN)
    sheet = Image.new("RGB", (max(size[0], 420), size[1]), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    first, second = comparison.names
    draw.text((_MARGIN, 8), f"1: {first}   2: {second}", _INK, font)
    for index, one in enumerate(worst):
        left = _MARGIN + index % across * cell_width
        top = head + index // across * cell_height
        picture = pictures.get(one.path)
        if picture is None:
            draw.rectangle((left, top, left + _SIDE - 1, top + _SIDE - 1), _GREY)
        else:
            _paste(sheet, picture, left, top)
        for line, text in enumerate(_captions(one)):
            _write(draw, text, left, top + _SIDE + 4 + 17 * line, font)
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def _paste(sheet: Image.Image, picture: Image.Image, left: int, top: int) -> None:
    scale = _SIDE / max(picture.size)
    if scale > 1:  # thumbnails only shrink, and 32 pixels are hard to see
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    place = left + (_SIDE - picture.width) // 2, top + (_SIDE - picture.height) // 2
    sheet.paste(picture, place)


def _captions(one: Disagreement) -> tuple[str, str]:
    return (
        f"1: {one.first} {one.first_score:.2f}",
        f"2: {one.second} {one.second_score:.2f}",
    )


def _write(
    draw: ImageDraw.ImageDraw,
    text: str,
    left: int,
    top: int,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """Writes as much of the text as fits under a picture."""
    if draw.textlength(text, font) > _SIDE:
        name, _, score = text.rpartition(" ")
        while name and draw.textlength(f"{name}… {score}", font) > _SIDE:
            name = name[:-1]
        text = f"{name}… {score}"
    draw.text((left, top), text, _INK, font)
