import numpy as np
from click.testing import CliRunner
from documents import ROOT, documented
from PIL import Image

from training.config import load_recipe
from training.contact_sheet import sheet_pixels
from training.data_cli import data

DIGITS = ROOT / "training/recipes/digits-lenet5.toml"


def pixels(*overrides):
    return sheet_pixels(load_recipe(DIGITS, overrides), images=5, looks=3)


def test_without_augmentation_every_look_is_the_served_view():
    served, shown, names = pixels("augment.translate_px=0")
    assert served.shape == (5, 32, 32, 3)
    assert (shown == served[:, None]).all()
    assert len(names) == 5


def test_each_row_shows_its_own_image_as_the_trainer_would():
    served, shown, _ = pixels("augment.noise_std=0.02", "augment.translate_px=0")
    assert (shown != served[:, None]).any(axis=(2, 3, 4)).all()
    distance = np.abs(shown[:, :, None].astype(float) - served[None, None]).mean(axis=(3, 4, 5))
    assert (distance.argmin(axis=2) == np.arange(5)[:, None]).all()


def test_the_command_writes_a_png(tmp_path, monkeypatch):
    path = tmp_path / "sheet.png"
    name, *arguments = documented("docs/train.md", "data sheet")
    assert name == "data"
    arguments += ["--images", "3", "--looks", "2", "--out", str(path)]
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(data, [*arguments, "--set", "augment.mixup_alpha=0.4"])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(path)
    with Image.open(path) as image:
        assert image.format == "PNG"
