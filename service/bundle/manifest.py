"""The manifest: `bundle.json`, the only truth about a model."""

from __future__ import annotations

import re
from datetime import datetime
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

Unit = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Scale = Annotated[float, Field(gt=0)]
Index = Annotated[int, Field(ge=0)]
Byte = Annotated[int, Field(ge=0, le=255)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
TtaPolicy = Literal["none", "hflip", "five_crop", "ten_crop", "multi_scale"]


def _check_inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or ".." in parts:
        raise ValueError("a file of a bundle lies inside its folder")
    # One name for each file: neither "a//b" nor "./a", and no NUL, which no file name may hold.
    if str(PurePosixPath(path)) != path or not path.isprintable():
        raise ValueError("the name of a file of a bundle is printable and has no empty part")
    return path


InnerPath = Annotated[str, AfterValidator(_check_inside)]


class Strict(BaseModel):
    """A frozen model that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Size(Strict):
    """Height and width in pixels."""

    height: Positive
    width: Positive


class Resize(Strict):
    """How an image of any size reaches the size that crops are cut from.

    `shorter_side` scales so that the shorter side is `size`, rounding as torchvision's `Resize`;
    `squash` makes it `size` x `size`; `longer_side_pad` scales the longer side to `size` and pads
    to a square with the background.
    """

    policy: Literal["shorter_side", "squash", "longer_side_pad"]
    size: Positive
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"]


class Preprocess(Strict):
    """Everything that turns decoded pixels into the model's views, except normalisation.

    `crop_only_resize` computes only the pixels that the crop needs, for 40 % less work in the
    resize. Pillow picks the order of its two passes by the sizes, so for one photograph in five to
    ten a tenth or more of the samples differ: by one level when bilinear, by up to 28 where bicubic
    or lanczos overshoot. `simd_resize` does the same with the vector instructions of the processor,
    for a sixth of the work; the pixels are the same on every processor, and within two levels of
    Pillow's when bilinear (service/bundle/simd_resize.py). `jpeg_scaled_decode` lets the JPEG
    decoder shrink large photographs while it decodes (docs/decisions.md has all three). They change
    the answer a little, so they are facts of the bundle: what was evaluated with them is served
    with them.
    """

    resize: Resize
    crop: Size
    crop_only_resize: bool = False
    simd_resize: bool = False
    jpeg_scaled_decode: bool = False
    background: tuple[Byte, Byte, Byte]
    colour_profile: Literal["ignore", "convert_to_srgb"] = "ignore"

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if max(self.crop.height, self.crop.width) > self.resize.size:
            raise ValueError("the crop is larger than the resized image can be")
        if self.simd_resize and self.resize.interpolation == "nearest":
            raise ValueError("simd_resize has no nearest interpolation, which needs no filter")
        return self


class Normalisation(Strict):
    """What the graph does to pixels scaled to 0..1: `(x - mean) / std`, per RGB channel."""

    mean: tuple[float, float, float]
    std: tuple[Scale, Scale, Scale]


class Label(Strict):
    """One class; its position in the list is its index, `parent` that of a group."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    id: Annotated[str, Field(max_length=200)] | None = None
    parent: Index | None = None


class Group(Strict):
    """Classes that an answer may name together; `parent` is the index of an earlier group."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    id: Annotated[str, Field(max_length=200)] | None = None
    parent: Index | None = None


class Output(Strict):
    """One output of the graph; `shape` leaves the batch dimension out."""

    name: Literal["probabilities", "embedding", "cam"]
    shape: tuple[Positive, ...]


class Calibration(Strict):
    """The temperature that the graph divides logits by, with the calibration error around it."""

    temperature: Annotated[float, Field(gt=0)]
    ece_before: Unit
    ece_after: Unit


class DecisionReference(Strict):
    """What abstaining below the threshold gave on validation images."""

    coverage: Unit
    accuracy: Unit


class ConformalLevel(Strict):
    """The classes with a score of `min_score` or more hold the right one with this coverage.

    `measured_coverage` and `mean_labels` are of images that did not choose the score: each half of
    validation is measured with the score of the other half.
    """

    coverage: Annotated[float, Field(gt=0, lt=1)]
    min_score: Unit
    measured_coverage: Unit
    mean_labels: Annotated[float, Field(ge=1)]


class Conformal(Strict):
    """Sets of labels, calibrated for the views of one policy; levels by rising coverage."""

    tta: TtaPolicy
    images: Positive
    levels: Annotated[tuple[ConformalLevel, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _rises(self) -> Self:
        coverages = [level.coverage for level in self.levels]
        if any(one >= other for one, other in pairwise(coverages)):
            raise ValueError("the coverages of the levels do not rise")
        return self


class Decision(Strict):
    """When an answer should not be acted on, and what can be said instead.

    `abstain_below_by_class` has a place for each class that may be the best one; where it is null
    the general threshold holds. `reference` is what both gave together; `roll_up` what naming a
    group gave on the images that were abstained on.
    """

    abstain_below: Unit | None = None
    abstain_below_by_class: tuple[Unit | None, ...] | None = None
    reference: DecisionReference | None = None
    roll_up: DecisionReference | None = None
    conformal: tuple[Conformal, ...] = ()

    @model_validator(mode="after")
    def _names_a_policy_once(self) -> Self:
        if len({one.tta for one in self.conformal}) != len(self.conformal):
            raise ValueError("a policy has two conformal calibrations")
        return self


class Metrics(Strict):
    """Accuracy of one variant, measured through the served path."""

    variant: str
    dataset: str
    split: str
    images: Positive
    tta: TtaPolicy
    top1: Unit
    top1_interval: tuple[Unit, Unit]
    top5: Unit
    # Bundles of before 2026-11-21 lack it.
    top5_interval: tuple[Unit, Unit] | None = None
    nll: Annotated[float, Field(ge=0)]
    ece: Unit


class Parity(Strict):
    """Agreement of a variant with the network it was exported from, on real images."""

    max_abs: Annotated[float, Field(ge=0)]
    top1_agreement: Unit
    images: Positive


class Variant(Strict):
    """One ONNX file of the model; `golden_tolerance` bounds its drift on the golden samples."""

    file: InnerPath
    precision: Literal["fp32", "fp16", "int8"]
    sha256: Sha256
    bytes: Positive
    opset: Positive
    parity: Parity
    golden_tolerance: Annotated[float, Field(gt=0, le=1)]


class FileRecord(Strict):
    """A file of the bundle that is not a variant."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class Reference(Strict):
    """What drift is measured against: validation as this model saw it."""

    predicted_classes: tuple[Annotated[int, Field(ge=0)], ...]
    confidence_histogram: tuple[Annotated[int, Field(ge=0)], ...]
    embedding_mean: tuple[float, ...] | None = None
    embedding_variance: tuple[float, ...] | None = None


class Provenance(Strict):
    """Where the model comes from; enough to make it again."""

    recipe: dict[str, Any]
    code_revision: str
    dataset_fingerprint: str
    seed: int | None
    hardware: str
    libraries: dict[str, str]


class Manifest(Strict):
    """The whole of `bundle.json`; the folder names repeat `name` and `version`."""

    spec_version: Literal[1] = 1
    name: Annotated[str, Field(pattern=f"^{NAME_PATTERN.pattern}$")]
    version: Positive
    created: datetime
    licence: str
    architecture: str
    input: Size
    preprocess: Preprocess
    normalisation: Normalisation
    labels: Annotated[tuple[Label, ...], Field(min_length=2)]
    groups: tuple[Group, ...] = ()
    outputs: Annotated[tuple[Output, ...], Field(min_length=1)]
    calibration: Calibration | None = None
    decision: Decision = Decision()
    metrics: tuple[Metrics, ...] = ()
    variants: Annotated[tuple[Variant, ...], Field(min_length=1)]
    files: dict[InnerPath, FileRecord]
    reference: Reference | None = None
    provenance: Provenance

    def has_output(self, name: str) -> bool:
        """Whether the graph has an output of that name."""
        return any(output.name == name for output in self.outputs)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if self.preprocess.crop != self.input:
            raise ValueError("the crop is not the size of the model's input")
        by_name = {output.name: output for output in self.outputs}
        if len(by_name) != len(self.outputs):
            raise ValueError("an output is named twice")
        if "probabilities" not in by_name:
            raise ValueError("there is no output named probabilities")
        if by_name["probabilities"].shape != (len(self.labels),):
            raise ValueError("the number of labels is not the number of classes")
        precisions = {variant.precision for variant in self.variants}
        if len(precisions) != len(self.variants):
            raise ValueError("a precision has two variants")
        if any(measured.variant not in precisions for measured in self.metrics):
            raise ValueError("metrics are about a variant that is not there")
        files = [*self.files, *(variant.file for variant in self.variants), "bundle.json"]
        if len(set(files)) != len(files):
            raise ValueError("a file is listed twice")
        if "golden/golden.json" not in self.files:
            raise ValueError("there are no golden samples")
        self._check_reference(by_name.get("embedding"))
        self._check_hierarchy()
        return self

    def _check_hierarchy(self) -> None:
        # A parent comes before its children, so no group is its own ancestor.
        allowed = [
            *((group.parent, place) for place, group in enumerate(self.groups)),
            *((label.parent, len(self.groups)) for label in self.labels),
        ]
        if any(parent is not None and parent >= end for parent, end in allowed):
            raise ValueError("a parent is not an earlier group")
        by_class = self.decision.abstain_below_by_class
        if by_class is not None and len(by_class) != len(self.labels):
            raise ValueError("the thresholds are about another number of classes")

    def _check_reference(self, embedding: Output | None) -> None:
        if self.reference is None:
            return
        if len(self.reference.predicted_classes) != len(self.labels):
            raise ValueError("the reference is about another number of classes")
        dimensions = embedding.shape if embedding else None
        for moments in (self.reference.embedding_mean, self.reference.embedding_variance):
            if moments is not None and (len(moments),) != dimensions:
                raise ValueError("the reference is about another embedding")


class GoldenSample(Strict):
    """One image of `golden/` with what the fp32 variant answers, no test-time augmentation."""

    file: InnerPath
    top: Annotated[tuple[Index, ...], Field(min_length=1, max_length=5)]
    probabilities: tuple[Unit, ...]


class Golden(Strict):
    """The whole of `golden/golden.json`."""

    samples: Annotated[tuple[GoldenSample, ...], Field(min_length=4, max_length=16)]
