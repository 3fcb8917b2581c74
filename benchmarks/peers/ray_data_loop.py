"""Offline scoring with Ray Data, as its guide to images has it, with an ONNX Runtime session.

Read images, transform each, infer batches in a pool of actors:
https://docs.ray.io/en/latest/data/working-with-images.html (2026-11-21). The guide writes its own
model into the class; here that is the session that the other programs run.

``python -m benchmarks.peers.ray_data_loop MODEL.onnx LIST OUT.csv --resize 256 --crop 224`` prints
the images and the seconds that they took as JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import ray
from PIL import Image
from ray.data import ActorPoolStrategy, DataContext
from torchvision import transforms


class Classifier:
    def __init__(self, model: str) -> None:
        import onnxruntime as ort

        self.session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        self.name = self.session.get_inputs()[0].name

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        views = np.ascontiguousarray(np.stack(batch["image"]))
        (probabilities,) = self.session.run(["probabilities"], {self.name: views})
        top = probabilities.argsort(axis=1)[:, ::-1][:, :5]
        scores = np.take_along_axis(probabilities, top, axis=1)
        return {"path": batch["path"], "index": top, "score": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("list", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--resize", type=int, required=True)
    parser.add_argument("--crop", type=int, required=True)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    transform = transforms.Compose(
        [transforms.Resize(options.resize), transforms.CenterCrop(options.crop)]
    )

    def prepare(row: dict) -> dict:
        row["image"] = np.asarray(transform(Image.fromarray(row["image"])))
        return row

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        num_cpus=options.cores,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    DataContext.get_current().enable_progress_bars = False
    started = time.monotonic()
    paths = options.list.read_text().split()
    predictions = (
        ray.data.read_images(paths, mode="RGB", include_paths=True)
        .map(prepare)
        .map_batches(
            Classifier,
            fn_constructor_args=(str(options.model.resolve()),),
            # Reading needs a core too.
            compute=ActorPoolStrategy(size=max(1, options.cores // 2)),
            batch_size=options.batch,
        )
    )
    images = first_images = 0
    with options.out.open("w") as file:
        writer = csv.writer(file)
        for batch in predictions.iter_batches(batch_size=options.batch):
            columns = zip(batch["path"], batch["index"], batch["score"], strict=True)
            writer.writerows([path, *index, *score] for path, index, score in columns)
            images += len(batch["path"])
            if not first_images:  # until then it was starting
                first_images, first = images, time.monotonic()
    ended = time.monotonic()
    seconds = ended - started
    if images > first_images:
        seconds = (ended - first) * images / (images - first_images)
    ray.shutdown()
    print(json.dumps({"images": images, "seconds": seconds}))


if __name__ == "__main__":
    main()
