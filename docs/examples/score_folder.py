"""Scores a folder of images from Python, goes on where it was stopped, and counts the classes.

python docs/examples/score_folder.py photos/ scores/
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from service.score import ScoreOptions, score_dataset

photos, scores = sys.argv[1:]
options = ScoreOptions(model="cifar10-airbench", top_k=3)
is_begun = (Path(scores) / "_manifest.json").exists()
summary = score_dataset(photos, scores, options, resume=is_begun)

rows = pq.read_table(scores, columns=["label", "status"]).to_pylist()
for label, count in Counter(row["label"] for row in rows if row["status"] == "ok").most_common():
    sys.stdout.write(f"{count:6} {label}\n")
sys.stdout.write(f"{summary.state}: {summary.progress.done} images in {scores}\n")
