"""Offline scoring as people write it: a PyTorch DataLoader in front of an ONNX Runtime session.

``python -m benchmarks.peers.dataloader_loop MODEL.onnx LIST OUT.csv --resize 256 --crop 224``
prints the images and the seconds from the first batch to the last as JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from pathlib import Path

import onnxruntime as ort
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class Photographs(Dataset):
    def __init__(self, paths: list[str], resize: int, crop: int) -> None:
        self.paths = paths
        self.transform = transforms.Compose(
            [
                transforms.Resize(resize),
                transforms.CenterCrop(crop),
                transforms.PILToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB")), self.paths[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("list", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--resize", type=int, required=True)
    parser.add_argument("--crop", type=int, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    paths = options.list.read_text().split()
    session = ort.InferenceSession(options.model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    loader = DataLoader(
        Photographs(paths, options.resize, options.crop),
        batch_size=options.batch,
        num_workers=options.workers,
    )
    with options.out.open("w") as file:
        writer = csv.writer(file)
        started, images = time.monotonic(), 0
        for pixels, names in loader:
            views = pixels.permute(0, 2, 3, 1).contiguous().numpy()
            (probabilities,) = session.run(["probabilities"], {name: views})
            for path, row in zip(names, probabilities, strict=True):
                top = row.argsort()[::-1][:5]
                writer.writerow([path, *top, *row[top]])
            images += len(names)
    print(json.dumps({"images": images, "seconds": time.monotonic() - started}))


if __name__ == "__main__":
    main()
