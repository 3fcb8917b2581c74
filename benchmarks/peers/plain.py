"""What every plain peer does with a photograph; only the framework around it differs.

A peer is one process tree started as ``python -m benchmarks.peers.NAME``; it is configured by the
environment variables read here, so that all of them get the same model file, preprocessing
parameters and threads.
"""

import io
import json
import os
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from PIL import Image

TOP_K = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerOptions:
    """The options of one peer process, read from ``PEER_*``."""

    model_path: str
    labels_path: str
    port: int
    workers: int
    threads: int
    batch: int
    resize: int
    crop: int
    only_crop_is_resized: bool

    @classmethod
    def from_environment(cls) -> "PeerOptions":
        """Returns the options of this process."""
        environment = os.environ
        return cls(
            model_path=environment["PEER_MODEL"],
            labels_path=environment["PEER_LABELS"],
            port=int(environment["PEER_PORT"]),
            workers=int(environment["PEER_WORKERS"]),
            threads=int(environment["PEER_THREADS"]),
            batch=int(environment["PEER_BATCH"]),
            resize=int(environment["PEER_RESIZE"]),
            crop=int(environment["PEER_CROP"]),
            only_crop_is_resized=environment["PEER_BOX"] == "1",
        )


class PlainModel:
    """A photograph's bytes -> uint8 crop -> ONNX Runtime -> top-5, with nothing clever."""

    def __init__(self, options: PeerOptions) -> None:
        session_options = ort.SessionOptions()
        session_options.intra_op_num_threads = options.threads
        self._session = ort.InferenceSession(
            options.model_path, session_options, providers=["CPUExecutionProvider"]
        )
        with open(options.labels_path, encoding="utf-8") as file:  # noqa: PTH123
            self._labels: list[str] = json.load(file)
        self._options = options

    def decode(self, body: bytes) -> np.ndarray:
        """Returns the photograph as the network wants it: uint8 [crop, crop, 3]."""
        return self.prepare(Image.open(io.BytesIO(body)))

    def prepare(self, opened: Image.Image) -> np.ndarray:
        """Returns an opened photograph, resized and cropped: uint8 [crop, crop, 3]."""
        image = opened.convert("RGB")
        width, height = image.size
        resize, crop = self._options.resize, self._options.crop
        shorter = min(width, height)
        new_width, new_height = int(resize * width / shorter), int(resize * height / shorter)
        left, top = round((new_width - crop) / 2), round((new_height - crop) / 2)
        if self._options.only_crop_is_resized:
            scale_x, scale_y = width / new_width, height / new_height
            box = (
                left * scale_x,
                top * scale_y,
                (left + crop) * scale_x,
                (top + crop) * scale_y,
            )
            return np.asarray(image.resize((crop, crop), Image.Resampling.BILINEAR, box=box))
        resized = image.resize((new_width, new_height), Image.Resampling.BILINEAR)
        return np.asarray(resized.crop((left, top, left + crop, top + crop)))

    def classify(self, crops: list[np.ndarray]) -> list[dict]:
        """Returns one top-5 answer for each uint8 [crop, crop, 3] of ``crops``."""
        (probabilities,) = self._session.run(["probabilities"], {"image": np.stack(crops)})
        return [self._top(row) for row in probabilities]

    def _top(self, probabilities: np.ndarray) -> dict:
        order = np.argsort(-probabilities)[:TOP_K]
        return {
            "predictions": [
                {"label": self._labels[i], "index": int(i), "score": float(probabilities[i])}
                for i in order
            ]
        }
