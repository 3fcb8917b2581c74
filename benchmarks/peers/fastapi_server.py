"""FastAPI + ONNX Runtime: a plain ``def`` endpoint, which FastAPI runs in its thread pool.

Sources: https://fastapi.tiangolo.com/tutorial/request-files/ (``bytes`` through ``File``),
https://fastapi.tiangolo.com/deployment/server-workers/ (``uvicorn --workers``).
"""

from typing import Annotated

import uvicorn
from fastapi import FastAPI, File

from benchmarks.peers.plain import PeerOptions, PlainModel


def create_app() -> FastAPI:
    """Returns the application; uvicorn calls this in each worker process."""
    model = PlainModel(PeerOptions.from_environment())
    app = FastAPI()

    @app.post("/classify")
    def classify(image: Annotated[bytes, File()]) -> dict:
        (answer,) = model.classify([model.decode(image)])
        return answer

    return app


def main() -> None:
    """Serve until stopped."""
    options = PeerOptions.from_environment()
    uvicorn.run(
        "benchmarks.peers.fastapi_server:create_app",
        factory=True,
        host="127.0.0.1",
        port=options.port,
        workers=options.workers,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
