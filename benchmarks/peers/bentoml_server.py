"""Plain BentoML: a ``batchable`` API over a list of PIL images, as its guide to batching shows.

Sources: https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html,
https://docs.bentoml.com/en/latest/build-with-bentoml/iotypes.html (images).
"""

import os
import sys

import bentoml
from PIL.Image import Image

from benchmarks.peers.plain import PeerOptions, PlainModel

OPTIONS = PeerOptions.from_environment()


@bentoml.service(workers=OPTIONS.workers)
class Classifier:
    """Photographs in, top-5 out."""

    def __init__(self) -> None:
        self._model = PlainModel(OPTIONS)

    @bentoml.api(batchable=True, max_batch_size=OPTIONS.batch, max_latency_ms=60_000)
    def classify(self, images: list[Image]) -> list[dict]:
        """Returns one answer for each photograph."""
        return self._model.classify([self._model.prepare(image) for image in images])


def main() -> None:
    """Become ``bentoml serve`` for the service above."""
    command = [sys.executable, "-m", "bentoml", "serve"]
    command += ["benchmarks.peers.bentoml_server:Classifier"]
    command += ["--host", "127.0.0.1", "--port", str(OPTIONS.port)]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
