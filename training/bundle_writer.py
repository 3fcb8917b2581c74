"""Graphs and facts in, a published bundle out; needs no PyTorch.

The files are written into a staging folder, every gate runs over them through the served path, and
only then does the folder get its name. A gate that fails raises, and nothing appears.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from service.bundle.manifest import (
    Calibration,
    Decision,
    Group,
    Label,
    Manifest,
    Normalisation,
    Output,
    Preprocess,
    Provenance,
    TtaPolicy,
    Variant,
)
from service.bundle.preprocess import Views
from service.bundle.repository import GOLDEN_FILE, MANIFEST_FILE, publishing, record_file
from training.data import Dataset
from training.decision import choose_decision
from training.errors import TrainingError
from training.evaluate import (
    Evaluation,
    ScoredImages,
    evaluate_scores,
    is_labelled,
    score_images,
)
from training.golden import check_golden, write_golden
from training.parity import GATES, check_parity, finite_expectation, parity_views
from training.reference import describe_reference
from training.report import write_report
from training.session import PROBABILITIES, open_session, output_shapes

MODEL_FILES = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}

Precision = str
Answers = dict[tuple[Precision, TtaPolicy], ScoredImages]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleFacts:
    """What a bundle says about itself that is known before anything is measured.

    `notes` are sentences for the model card; `curves` is a PNG of learning curves to keep.
    """

    name: str
    architecture: str
    licence: str
    preprocess: Preprocess
    normalisation: Normalisation
    labels: tuple[Label, ...]
    provenance: Provenance
    groups: tuple[Group, ...] = ()
    calibration: Calibration | None = None
    notes: tuple[str, ...] = ()
    curves: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleWriter:
    """Everything that goes into one bundle.

    Attributes:
        facts: What the manifest says that is not measured here.
        graphs: The ONNX model of each precision; "fp32" is needed.
        images: Real images, 64 or more, whose labels index `facts.labels`; -1 for no label.
        expected: Maps views uint8 [N, H, W, 3] to the probabilities [N, C] that the graphs must
            give: the network before its export, in fp32.
        tta_policies: Measured besides "none".
        target_accuracy: Of the answers above the abstention threshold; None halves the error.
        has_class_thresholds: Choose thresholds for single classes too.
        on_stage: Told what happens next, in a few words.
    """

    facts: BundleFacts
    graphs: Mapping[Precision, onnx.ModelProto]
    images: Dataset
    expected: Callable[[Views], NDArray[np.float32]]
    tta_policies: tuple[TtaPolicy, ...] = ()
    target_accuracy: float | None = None
    has_class_thresholds: bool = False
    on_stage: Callable[[str], None] | None = None

    @property
    def is_labelled(self) -> bool:
        """Whether every image has a class; else the bundle is gated but its accuracy unknown."""
        return is_labelled(self.images)

    def publish(self, repository: Path) -> Path:
        """Returns the folder of the published bundle; the repository is made when absent.

        Raises:
            TrainingError: A gate failed, or the repository cannot be written.
            BundleError: The name is not allowed, or the manifest contradicts itself.
        """
        try:
            with publishing(repository, self.facts.name) as (staging, version):
                self._fill(staging, version)
        except OSError as error:
            raise TrainingError(f"{repository} cannot be written: {error.strerror}") from error
        return repository / self.facts.name / str(version)

    def _tell(self, stage: str) -> None:
        if self.on_stage is not None:
            self.on_stage(stage)

    def _fill(self, staging: Path, version: int) -> None:
        variants = self._write_variants(staging)
        answers = self._answer(staging)
        plain = answers["fp32", "none"]
        self._tell("golden samples")
        session = open_session(staging / MODEL_FILES["fp32"])
        golden = write_golden(
            staging, session, self.images, self.facts.preprocess, plain.probabilities
        )
        for variant in variants:
            check_golden(staging, golden, self.facts.preprocess, variant)
        evaluations = {
            key: evaluate_scores(scored.probabilities, self.images, tta=key[1])
            for key, scored in answers.items()
            if self.is_labelled
        }
        shapes = output_shapes(session)
        manifest = self._draft(staging, version, variants, answers, evaluations, shapes)
        self._tell("model card")
        write_report(
            staging,
            manifest,
            evaluations.get(("fp32", "none")),
            notes=self.facts.notes,
            curves=self.facts.curves,
        )
        models = {variant.file for variant in variants}
        files = {
            path.relative_to(staging).as_posix(): record_file(path)
            for path in sorted(staging.rglob("*"))
            if path.is_file()
        }
        others = {name: record for name, record in files.items() if name not in models}
        manifest = manifest.model_copy(update={"files": others})
        text = manifest.model_dump_json(indent=1)
        (staging / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")

    def _write_variants(self, staging: Path) -> tuple[Variant, ...]:
        views = parity_views(self.images, self.facts.preprocess)
        expected = finite_expectation(self.expected(views))
        variants = []
        for precision, model in self.graphs.items():
            self._tell(f"parity of {precision} on {len(views)} images")
            path = staging / MODEL_FILES[precision]
            path.write_bytes(model.SerializeToString(deterministic=True))
            session = open_session(path)
            self._check_classes(output_shapes(session)[PROBABILITIES])
            parity = check_parity(session, views, expected, precision)
            record = record_file(path)
            variants.append(
                Variant(
                    file=path.name,
                    precision=precision,
                    sha256=record.sha256,
                    bytes=record.bytes,
                    opset=_opset(model),
                    parity=parity,
                    golden_tolerance=GATES[precision].golden_tolerance,
                )
            )
        return tuple(variants)

    def _check_classes(self, shape: tuple[int, ...]) -> None:
        if shape != (len(self.facts.labels),):
            raise TrainingError(
                f"the network tells {shape[0]} classes apart, there are "
                f"{len(self.facts.labels)} labels"
            )

    def _answer(self, staging: Path) -> Answers:
        """Returns what each variant says to the images; augmented only where labels tell."""
        augmented = [tta for tta in self.tta_policies if tta != "none" and self.is_labelled]
        asked: list[tuple[Precision, TtaPolicy]] = [("fp32", "none")]
        asked += [("fp32", tta) for tta in augmented]
        asked += [(one, "none") for one in self.graphs if one != "fp32" and self.is_labelled]
        answers: Answers = {}
        for precision, tta in asked:
            self._tell(f"{len(self.images)} images through {precision}, augmentation {tta}")
            session = open_session(staging / MODEL_FILES[precision])
            answers[precision, tta] = score_images(
                session, self.images, self.facts.preprocess, tta=tta
            )
        return answers

    def _draft(
        self,
        staging: Path,
        version: int,
        variants: tuple[Variant, ...],
        answers: Answers,
        evaluations: Mapping[tuple[Precision, TtaPolicy], Evaluation],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> Manifest:
        """Returns the manifest, complete but for the list of files."""
        decision = Decision()
        if self.is_labelled:
            decision = choose_decision(
                {
                    tta: one.probabilities
                    for (which, tta), one in answers.items()
                    if which == "fp32"
                },
                self.images.labels,
                self.facts.labels,
                self.facts.groups,
                target_accuracy=self.target_accuracy,
                has_class_thresholds=self.has_class_thresholds,
            )
        return Manifest(
            name=self.facts.name,
            version=version,
            created=datetime.now(UTC).replace(microsecond=0),
            licence=self.facts.licence,
            architecture=self.facts.architecture,
            input=self.facts.preprocess.crop,
            preprocess=self.facts.preprocess,
            normalisation=self.facts.normalisation,
            labels=self.facts.labels,
            groups=self.facts.groups,
            outputs=tuple(Output(name=name, shape=shape) for name, shape in shapes.items()),
            calibration=self.facts.calibration,
            decision=decision,
            metrics=tuple(one.metrics(precision) for (precision, _), one in evaluations.items()),
            variants=variants,
            files={GOLDEN_FILE: record_file(staging / GOLDEN_FILE)},
            reference=describe_reference(answers["fp32", "none"]),
            provenance=self.facts.provenance,
        )


def _opset(model: onnx.ModelProto) -> int:
    return max(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
