"""Closed-loop gRPC load: one asyncio process, as many calls in flight as asked for.

Started as ``python -m benchmarks.grpc_client TARGET LISTING CONCURRENCY SECONDS V2_MODEL``; with an
empty V2_MODEL it speaks our own protocol. Prints the same line of JSON as ``wrk.lua``. It shares
the cores with the server and costs about 0.5 ms of CPU a call, several times what wrk costs:
figures over gRPC are lower by that.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from collections import Counter
from pathlib import Path

import grpc
import numpy as np
import uvloop

from service.proto.image_classifier_pb2 import ClassifyRequest
from service.proto.open_inference_pb2 import ModelInferRequest

CLASSIFY = "/fivecrop.v1.ImageClassifier/Classify"
INFER = "/inference.GRPCInferenceService/ModelInfer"
CALL_TIMEOUT_S = 30.0


async def drive(
    target: str, method: str, requests: list[bytes], concurrency: int, seconds: float
) -> dict:
    """Returns what ``concurrency`` callers saw who each send their next photograph at once.

    Requests are serialised beforehand and answers left as bytes, to keep the client cheap.
    """
    outcomes: Counter[str] = Counter()
    latencies_ms: list[float] = []
    position = 0
    async with grpc.aio.insecure_channel(target) as channel:
        classify = channel.unary_unary(method)
        await channel.channel_ready()
        started, cpu_started = time.monotonic(), time.process_time()
        deadline = started + seconds

        async def call_in_a_loop() -> None:
            nonlocal position
            while (sent := time.monotonic()) < deadline:
                request = requests[position % len(requests)]
                position += 1
                try:
                    await classify(request, timeout=CALL_TIMEOUT_S)
                except grpc.aio.AioRpcError as error:
                    outcomes[error.code().name] += 1
                    continue
                outcomes["OK"] += 1
                latencies_ms.append((time.monotonic() - sent) * 1000)

        await asyncio.gather(*(call_in_a_loop() for _ in range(concurrency)))
        elapsed = time.monotonic() - started
        cpu_seconds = time.process_time() - cpu_started
    return {
        "requests": outcomes.total(),
        "answered": outcomes.total(),
        "accepted": outcomes["OK"],
        "seconds": elapsed,
        "cpu_seconds": cpu_seconds,
        "p50_ms": float(np.percentile(latencies_ms, 50)) if latencies_ms else 0.0,
        "p99_ms": float(np.percentile(latencies_ms, 99)) if latencies_ms else 0.0,
        "max_ms": max(latencies_ms, default=0.0),
        "socket_errors": outcomes["UNAVAILABLE"],
        "timeouts": outcomes["DEADLINE_EXCEEDED"],
    }


def make_classify(body: bytes) -> ClassifyRequest:
    """Returns the request of our own protocol for a photograph."""
    return ClassifyRequest(image=body)


def make_infer(model: str, body: bytes) -> ModelInferRequest:
    """Returns the v2 request for a photograph, as raw content."""
    tensor = ModelInferRequest.InferInputTensor(name="image", datatype="BYTES", shape=[1])
    content = struct.pack("<I", len(body)) + body
    return ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[content])


def main() -> None:
    """Prints one line of JSON."""
    target, listing, concurrency, seconds, v2_model = sys.argv[1:]
    bodies = [Path(line).read_bytes() for line in Path(listing).read_text().splitlines()]
    messages = [make_infer(v2_model, body) if v2_model else make_classify(body) for body in bodies]
    requests = [message.SerializeToString() for message in messages]
    method = INFER if v2_model else CLASSIFY
    seen = uvloop.run(drive(target, method, requests, int(concurrency), float(seconds)))
    print("JSON " + json.dumps(seen))


if __name__ == "__main__":
    main()
