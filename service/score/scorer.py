"""One image at a time: decode, engine, postprocess, exactly as the service does it.

The views of an image run as a batch of their own. Then nothing of an answer can depend on the
images beside it, and on a CPU batches do not pay (docs/decisions.md).
"""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import Future
from typing import cast

import numpy as np
from numpy.typing import NDArray

from service.bundle.decision import Decider
from service.bundle.manifest import TtaPolicy, Variant
from service.bundle.postprocess import average_views, predict
from service.bundle.preprocess import PreparedImage, prepare
from service.bundle.repository import Bundle
from service.engine import Engine
from service.model import make_engine, prove_golden
from service.score.entry import Entry
from service.score.errors import ScoreError
from service.score.messages import Spent
from service.score.options import ScoreOptions
from service.score.row import Row, answered_row, failed_row
from service.score.storage import ReadError, code_of
from service.settings import Settings
from service.url_guard import refuse_url


class Scorer:
    """A bundle on an engine, with the options of a job.

    Attributes:
        engine: What runs the bundle.
        variant: The file of the bundle that runs.
        spent: Where the time went so far.
    """

    def __init__(self, bundle: Bundle, options: ScoreOptions, settings: Settings) -> None:
        """Loads the bundle, whose files have been verified.

        Raises:
            StartError: The bundle cannot run here, or has no output that the options ask for.
        """
        if options.embedding and not bundle.manifest.has_output("embedding"):
            raise ScoreError(f"{bundle.reference} has no embedding")
        self.engine: Engine
        self.variant: Variant
        self.engine, self.variant = make_engine(bundle, settings)
        self.spent = Spent()
        self._bundle = bundle
        self._options = options
        self._limits = settings.image_limits()
        manifest = bundle.manifest
        self._labels = tuple(label.name for label in manifest.labels)
        self._decider = Decider(manifest.decision, manifest.labels, manifest.groups)
        self._tta = cast("TtaPolicy", options.tta)
        self._outputs = ["probabilities", *(["embedding"] if options.embedding else [])]

    def prove(self, golden: slice) -> None:
        """Proves that the bundle reproduces these of its golden samples on this machine.

        Raises:
            BundleError: It does not.
        """
        prove_golden(self._bundle, self.variant, self.engine, golden)

    def score_read(self, entry: Entry, read: Future[bytes]) -> Row:
        """Returns the row of an image whose bytes are on their way."""
        waits = time.perf_counter()
        try:
            data = read.result()
        except ReadError as error:
            return failed_row(entry, error.code)
        self.spent.read_s += time.perf_counter() - waits
        return self.score(entry, data)

    def score(self, entry: Entry, data: bytes) -> Row:
        """Returns the row of an encoded image; what is wrong with it is in the row."""
        start = time.perf_counter()
        digest = hashlib.sha256(data).hexdigest() if self._options.sha256 else None
        prepared: PreparedImage | None = None
        try:
            refuse_url(data)
            prepared = prepare(
                data, self._bundle.manifest.preprocess, tta=self._tta, limits=self._limits
            )
            decoded = time.perf_counter()
            self.spent.decode_s += decoded - start
            outputs = self.engine.run_outputs(prepared.views, self._outputs)
            self.spent.infer_s += time.perf_counter() - decoded
            return self._conclude(entry, prepared, outputs, digest)
        except Exception as error:  # noqa: BLE001 - one image never takes the job down
            row = failed_row(entry, code_of(error))
            row.sha256 = digest
            return row

    def _conclude(
        self,
        entry: Entry,
        prepared: PreparedImage,
        outputs: list[NDArray[np.float32]],
        digest: str | None,
    ) -> Row:
        probabilities = average_views(outputs[0])
        top = predict(probabilities, self._labels, self._options.top_k)
        best = top[0]
        if self._options.min_score is None:
            is_sure = not self._decider.decide(probabilities, best.index).abstained
        else:
            is_sure = best.score >= self._options.min_score
        row = answered_row(entry, top, is_sure=is_sure)
        row.width, row.height, row.format = prepared.width, prepared.height, prepared.format
        row.sha256 = digest
        if self._options.embedding:
            row.embedding = outputs[1].mean(axis=0, dtype=np.float32).tolist()
        if self._options.probabilities:
            row.probabilities = probabilities.tolist()
        return row
