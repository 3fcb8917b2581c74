"""LitServe: one ``LitAPI`` in several worker processes on the CPU.

Sources: https://lightning.ai/docs/litserve/features/request-response-format (a multipart file),
https://lightning.ai/docs/litserve/api-reference/litserver (``workers_per_device``).
"""

import litserve
import numpy as np
from fastapi import Request

from benchmarks.peers.plain import PeerOptions, PlainModel


class Classifier(litserve.LitAPI):
    """Photograph in, top-5 out."""

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the model once in each worker process."""
        self._model = PlainModel(PeerOptions.from_environment())

    def decode_request(self, request: Request) -> np.ndarray:
        """Returns the uploaded photograph as uint8 [H, W, 3]."""
        return self._model.decode(request["image"].file.read())

    def batch(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Returns the inputs as they are: ``classify`` stacks them."""
        return inputs

    def predict(self, x: np.ndarray | list[np.ndarray]) -> dict | list[dict]:
        """Returns one answer for each photograph; LitServe passes a list only when it batches."""
        if isinstance(x, list):
            return self._model.classify(x)
        return self._model.classify([x])[0]

    def unbatch(self, output: list[dict]) -> list[dict]:
        """Returns the answers one by one."""
        return output

    def encode_response(self, output: dict) -> dict:
        """Returns the answer, which is JSON already."""
        return output


def main() -> None:
    """Serve until stopped."""
    options = PeerOptions.from_environment()
    api = Classifier(max_batch_size=options.batch, batch_timeout=0.0, api_path="/classify")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=options.workers)
    server.run(host="127.0.0.1", port=options.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
