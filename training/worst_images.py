"""The images that a model is most wrong about, on one sheet for a person to look at.

Some will be labelled wrongly: a model that finds them has done its work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from service.bundle.manifest import Preprocess
from training.data import Dataset
from training.evaluate import image_views
from training.scores import Indices, Probabilities

_COLUMNS = 6
_PICTURE_PX = 112
_TEXT_PX = 40
_GAP_PX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """An image, by its place in the data set, that got the wrong answer."""

    image: int
    label: str
    predicted: str
    label_score: float
    predicted_score: float


def find_mistakes(
    probabilities: Probabilities, labels: Indices, names: Sequence[str], count: int
) -> tuple[Mistake, ...]:
    """Returns up to `count` wrong answers, that which gives its label the least first."""
    of_label = probabilities[np.arange(len(labels)), labels]
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    order = wrong[np.argsort(of_label[wrong], kind="stable")][:count]
    return tuple(
        Mistake(
            image=int(index),
            label=names[labels[index]],
            predicted=names[predicted[index]],
            label_score=float(of_label[index]),
            predicted_score=float(probabilities[index, predicted[index]]),
        )
        for index in order
    )


def draw_mistakes(
    mistakes: Sequence[Mistake], dataset: Dataset, preprocess: Preprocess, path: Path
) -> None:
    """Draws what the model was shown, with its answer and the label below, as a PNG."""
    rows = max(1, -(-len(mistakes) // _COLUMNS))
    across, down = _PICTURE_PX + _GAP_PX, _PICTURE_PX + _TEXT_PX + _GAP_PX
    sheet = Image.new("RGB", (_COLUMNS * across + _GAP_PX, rows * down + _GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for place, one in enumerate(mistakes):
        left = _GAP_PX + place % _COLUMNS * across
        top = _GAP_PX + place // _COLUMNS * down
        view = Image.fromarray(image_views(dataset, one.image, preprocess)[0])
        view.thumbnail((_PICTURE_PX, _PICTURE_PX))
        factor = _PICTURE_PX / max(view.size)
        size = round(view.width * factor), round(view.height * factor)
        sheet.paste(view.resize(size, Image.Resampling.NEAREST), (left, top))
        lines = (
            (f"{one.predicted} {one.predicted_score:.0%}", "#b00020"),
            (f"{one.label} {one.label_score:.1%}", "black"),
            (f"image {one.image}", "grey"),
        )
        for number, (text, colour) in enumerate(lines):
            shown = _fit(text, font)
            draw.text((left, top + _PICTURE_PX + 1 + 13 * number), shown, fill=colour, font=font)
    sheet.save(path, "PNG")


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Returns the text, its middle left out where it is wider than a picture."""
    keep = len(text)
    shown = text
    while font.getlength(shown) > _PICTURE_PX and keep > 8:
        keep -= 1
        shown = f"{text[: keep - 6]}…{text[-6:]}"
    return shown
