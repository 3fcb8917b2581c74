"""mosec: one stage of identical workers, each of which decodes and infers what it is handed.

The body is the photograph itself (``deserialize`` takes raw bytes), which is the cheapest edge that
mosec offers. Sources: https://mosecorg.github.io/mosec/examples/pytorch.html,
https://mosecorg.github.io/mosec/reference/interface.html.
"""

import os

from mosec import Server, Worker

from benchmarks.peers.plain import PeerOptions, PlainModel


class Classifier(Worker):
    """Photograph in, top-5 out."""

    def __init__(self) -> None:
        super().__init__()
        self._model = PlainModel(PeerOptions.from_environment())

    def deserialize(self, data: bytes) -> bytes:
        """Returns the body as it is: it is a photograph, not JSON."""
        return data

    def forward(self, data: list[bytes] | bytes) -> list[dict] | dict:
        """Returns one answer for each photograph; mosec passes a list only when it batches."""
        if isinstance(data, list):
            return self._model.classify([self._model.decode(body) for body in data])
        return self._model.classify([self._model.decode(data)])[0]


def main() -> None:
    """Serve until stopped."""
    options = PeerOptions.from_environment()
    os.environ.update(
        MOSEC_ADDRESS="127.0.0.1",
        MOSEC_PORT=str(options.port),
        MOSEC_LOG_LEVEL="warning",
        MOSEC_TIMEOUT="30000",
    )
    server = Server()
    server.append_worker(Classifier, num=options.workers, max_batch_size=options.batch)
    server.run()


if __name__ == "__main__":
    main()
