"""What is wrong with a data set: unreadable images, duplicates, imbalance, doubtful labels."""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from service.bundle.decode import Limits, decode
from service.errors import RequestError
from training.data import Dataset, Splits

# So many of the 63 bits of two perceptual hashes may differ in the same picture. 60 photographs of
# ImageNet, scaled to 0.3 and 0.5 and compressed again (quality 50 and 70): 6 at most; two different
# ones: 16 at least.
_NEAR_BITS = 6
_BITS_A_PART = 9
# Levels of 255: a flatter picture has no bits of its own, compression alone turns 10 to 28 of them.
_FLAT = 8.0
_RARE_SHARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRef:
    """One image of one split."""

    split: str
    index: int
    label: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """Two images that are the same, byte by byte or to the eye.

    Attributes:
        kind: `exact` or `perceptual`.
        first: of the two.
        second: of the two.
        is_across_splits: the validation then measures memory.
        is_label_different: one of the labels is wrong.
    """

    kind: str
    first: ImageRef
    second: ImageRef
    is_across_splits: bool
    is_label_different: bool


@dataclass(slots=True, kw_only=True)
class DataCheck:
    """What was found.

    Attributes:
        images: in each split.
        classes: images of each class in each split.
        unreadable: images that serving would refuse, and why.
        duplicates: pairs, each image with the first one like it.
        sizes: width and height in pixels: least, median, most; None without a readable image.
        mean: of the channels, of pixels scaled to [0, 1].
        std: of the channels.
        problems: in words, worst first.
    """

    images: dict[str, int]
    classes: dict[str, dict[str, int]]
    unreadable: list[tuple[ImageRef, str]] = field(default_factory=list)
    duplicates: list[Duplicate] = field(default_factory=list)
    sizes: dict[str, tuple[int, int, int]] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    problems: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def check_data(splits: Splits, on_progress: Callable[[int], None] | None = None) -> DataCheck:
    """Read every image of both splits and return what was found."""
    datasets = (splits.train, splits.validation)
    report = DataCheck(
        images={one.split: len(one) for one in datasets},
        classes={one.split: _class_sizes(one) for one in datasets},
    )
    seen = _Seen()
    totals = _Totals()
    for dataset in datasets:
        for index in range(len(dataset)):
            ref = _ref(dataset, index)
            try:
                data = dataset.image_bytes(index)
                pixels = np.asarray(decode(data, Limits(), background=(0, 0, 0)).rgb)
            except (RequestError, OSError) as error:
                report.unreadable.append((ref, str(error)))
            else:
                totals.add(pixels)
                seen.add(ref, hashlib.sha256(data).digest(), perceptual_hash(pixels))
            if on_progress is not None:
                on_progress(1)
    report.duplicates = seen.duplicates()
    totals.tell(report)
    report.problems = _problems(report)
    return report


def perceptual_hash(pixels: NDArray[np.uint8]) -> int | None:
    """Return 63 bits that stand scaling and compression (pHash); None for a flat picture.

    Whether each of the lowest 8x8 frequencies but the mean, of 32x32 grey pixels, is above their
    median.
    """
    grey = Image.fromarray(pixels).convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    lowest = dctn(np.asarray(grey, np.float64), norm="ortho")[:8, :8].flatten()[1:]
    if np.abs(lowest).mean() < _FLAT:
        return None
    bits = np.append(False, lowest > np.median(lowest))
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def thumbnail(dataset: Dataset, index: int, side: int = 96) -> bytes | None:
    """Return a small JPEG of an image; None if it cannot be read."""
    try:
        image = decode(dataset.image_bytes(index), Limits(), background=(0, 0, 0)).rgb
    except (RequestError, OSError):
        return None
    picture = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    picture = picture.convert("RGB")
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


class _Seen:
    """Finds like images: by their bytes, and by eight bytes of their hashes."""

    def __init__(self) -> None:
        self._refs: list[ImageRef] = []
        self._digests: dict[bytes, int] = {}
        self._hashes: list[int | None] = []
        self._exact: list[tuple[int, int]] = []

    def add(self, ref: ImageRef, digest: bytes, bits: int | None) -> None:
        number = len(self._refs)
        self._refs.append(ref)
        self._hashes.append(bits)
        first = self._digests.setdefault(digest, number)
        if first != number:
            self._exact.append((first, number))

    def duplicates(self) -> list[Duplicate]:
        copies = {second for _, second in self._exact}
        pairs = [("exact", *pair) for pair in self._exact]
        pairs += [("perceptual", *pair) for pair in self._near(copies)]
        return [self._pair(*one) for one in pairs]

    def _near(self, copies: set[int]) -> list[tuple[int, int]]:
        # Of 7 parts at least one is the same if 6 bits differ at most.
        parts: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        found = []
        for number, bits in enumerate(self._hashes):
            if bits is None or number in copies:
                continue
            mask = (1 << _BITS_A_PART) - 1
            keys = [(place, bits >> place * _BITS_A_PART & mask) for place in range(_NEAR_BITS + 1)]
            near = {
                other
                for key in keys
                for other, own in parts[key]
                if (own ^ bits).bit_count() <= _NEAR_BITS
            }
            if near:
                found.append((min(near), number))
            for key in keys:
                parts[key].append((number, bits))
        return found

    def _pair(self, kind: str, first: int, second: int) -> Duplicate:
        one, other = self._refs[first], self._refs[second]
        return Duplicate(
            kind=kind,
            first=one,
            second=other,
            is_across_splits=one.split != other.split,
            is_label_different=one.label != other.label,
        )


class _Totals:
    """Sizes, and sums of the pixels."""

    def __init__(self) -> None:
        self._sizes: list[tuple[int, int]] = []
        self._count = 0
        self._sum = np.zeros(3)
        self._squares = np.zeros(3)

    def add(self, pixels: NDArray[np.uint8]) -> None:
        values = pixels.reshape(-1, 3).astype(np.float64) / 255
        self._sizes.append((pixels.shape[1], pixels.shape[0]))
        self._count += len(values)
        self._sum += values.sum(axis=0)
        self._squares += (values**2).sum(axis=0)

    def tell(self, report: DataCheck) -> None:
        if not self._sizes:
            return
        widths, heights = np.array(self._sizes).T
        report.sizes = {
            name: (int(values.min()), int(np.median(values)), int(values.max()))
            for name, values in (("width", widths), ("height", heights))
        }
        mean = self._sum / self._count
        deviation = np.sqrt(np.maximum(self._squares / self._count - mean**2, 0))
        report.mean = (float(mean[0]), float(mean[1]), float(mean[2]))
        report.std = (float(deviation[0]), float(deviation[1]), float(deviation[2]))


def _ref(dataset: Dataset, index: int) -> ImageRef:
    image = dataset.images[index]
    return ImageRef(
        split=dataset.split,
        index=index,
        label=dataset.class_names[dataset.labels[index]],
        name=str(image) if isinstance(image, Path) else f"image {index}",
    )


def _class_sizes(dataset: Dataset) -> dict[str, int]:
    counts = np.bincount(dataset.labels, minlength=len(dataset.class_names)).tolist()
    return dict(zip(dataset.class_names, counts, strict=True))


def _problems(report: DataCheck) -> list[str]:
    across = [one for one in report.duplicates if one.is_across_splits]
    mislabelled = [one for one in report.duplicates if one.is_label_different]
    told = [
        (len(report.unreadable), "images cannot be read"),
        (len(across), "images of the validation are in the training too, or look the same"),
        (len(mislabelled), "pairs of like images have different labels"),
        (len(report.duplicates) - len(across), "images are there twice within a split"),
    ]
    problems = [f"{count} {text}" for count, text in told if count]
    for split, sizes in report.classes.items():
        empty = [name for name, count in sizes.items() if count == 0]
        if empty:
            problems.append(f"{split}: no image of {', '.join(empty[:5])} ({len(empty)} classes)")
        largest = max(sizes.values())
        rare = [name for name, count in sizes.items() if 0 < count < _RARE_SHARE * largest]
        if rare:
            problems.append(
                f"{split}: {', '.join(rare[:5])} ({len(rare)} classes) have less than a tenth of "
                "the images of the largest; see train.imbalance"
            )
    return problems
