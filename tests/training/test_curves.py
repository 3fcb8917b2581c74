import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from training.curves import plot_curves, read_history
from training.errors import TrainingError

RECORD = {
    "epoch": 1.0,
    "lr_factor": 0.5,
    "train_loss": 2.0,
    "train_top1": 0.4,
    "validation_loss": 1.5,
    "validation_top1": 0.6,
}


def test_one_epoch_is_enough_for_a_plot(tmp_path):
    plot_curves([RECORD], tmp_path / "curves.png", title="one epoch")
    with Image.open(tmp_path / "curves.png") as plot:
        assert plot.format == "PNG"
        colours = np.asarray(plot.convert("RGB"))
    thirds = np.array_split(colours, 3, axis=1)
    for third, colour in ((1, (31, 119, 180)), (1, (255, 127, 14)), (2, (31, 119, 180))):
        assert (np.abs(thirds[third] - np.array(colour)).max(axis=2) < 3).sum() > 20, third
    assert len(list(tmp_path.iterdir())) == 1


def test_a_history_that_is_not_there_is_empty_and_a_broken_one_refused(tmp_path):
    path = tmp_path / "history.jsonl"
    assert read_history(path) == []
    path.write_text('{"epoch": 1}\n{"epoch"')
    with pytest.raises(TrainingError, match=r"history\.jsonl"):
        read_history(path)


def test_importing_the_trainer_does_not_import_matplotlib():
    code = "import sys, training.train; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
