import io
import json

import numpy as np
import pytest
from click.testing import CliRunner
from documents import ROOT, documented
from PIL import Image
from sklearn.datasets import load_sample_images

from training.data_check import perceptual_hash
from training.data_cli import data


def crop(number, size=96):
    """A part of a real photograph, another one for each number."""
    photograph = Image.fromarray(load_sample_images().images[number % 2])
    left, top = 61 * (number // 2 % 8), 53 * (number // 16)
    return photograph.crop((left, top, left + size, top + size))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 photographs of two classes, and what may be wrong with some."""
    root = tmp_path_factory.mktemp("data") / "pictures"
    for number in range(30):
        path = root / f"class{number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop(number).save(path)
    return root


def check(folder, *arguments):
    done = CliRunner().invoke(data, ["check", str(folder), "--json", *arguments])
    assert done.exit_code in (0, 1), done.output
    return done.exit_code, json.loads(done.stdout)


@pytest.fixture
def bad_folder(folder, tmp_path):
    import shutil

    copy = tmp_path / "pictures"
    shutil.copytree(folder, copy)
    return copy


def test_clean_data_has_no_problem_and_true_statistics(folder):
    code, found = check(folder)
    assert (code, found["problems"], found["duplicates"], found["unreadable"]) == (0, [], [], [])
    assert found["images"] == {"train": 24, "validation": 6}
    assert found["classes"]["train"] == {"class0": 12, "class1": 12}
    assert found["sizes"] == {"width": [96, 96, 96], "height": [96, 96, 96]}
    pixels = np.stack([np.asarray(crop(number)) for number in range(30)]) / 255
    assert found["mean"] == pytest.approx(pixels.mean(axis=(0, 1, 2)).tolist())
    assert found["std"] == pytest.approx(pixels.std(axis=(0, 1, 2)).tolist())


def test_unreadable_images_are_named(bad_folder):
    (bad_folder / "class0" / "00.png").write_bytes(b"no image")
    code, found = check(bad_folder)
    assert code == 1
    ((ref, problem),) = found["unreadable"]
    assert ref["name"].endswith("class0/00.png")
    assert problem
    assert found["problems"] == ["1 images cannot be read"]


def test_exact_copies_under_another_label_are_found(bad_folder):
    content = (bad_folder / "class0" / "04.png").read_bytes()
    (bad_folder / "class1" / "copy.png").write_bytes(content)
    code, found = check(bad_folder)
    (pair,) = found["duplicates"]
    assert (code, pair["kind"], pair["is_label_different"]) == (1, "exact", True)
    assert {pair["first"]["label"], pair["second"]["label"]} == {"class0", "class1"}
    assert "1 pairs of like images have different labels" in found["problems"]


def test_pictures_that_were_scaled_and_compressed_again_are_found(bad_folder):
    for number in (4, 6, 20, 22):
        image = crop(number).resize((80, 80))
        image.save(bad_folder / "class0" / f"again{number}.jpg", quality=70)
    _, found = check(bad_folder)
    assert len(found["duplicates"]) == 4
    for pair in found["duplicates"]:
        names = sorted(one["name"].rpartition("/")[2] for one in (pair["first"], pair["second"]))
        assert names[1].startswith("again")
        assert pair["kind"] == "perceptual"
        assert int(names[0][:2]) == int(names[1][5:-4])
        assert pair["is_across_splits"] == (pair["first"]["split"] != pair["second"]["split"])


def test_the_hash_stands_recompression_and_tells_photographs_apart():
    original = perceptual_hash(np.asarray(crop(3)))
    buffer = io.BytesIO()
    crop(3).save(buffer, "JPEG", quality=50)
    again = perceptual_hash(np.asarray(Image.open(buffer)))
    assert (original ^ again).bit_count() <= 4
    assert (original ^ perceptual_hash(np.asarray(crop(5)))).bit_count() > 10


def test_flat_pictures_are_not_all_the_same_picture(bad_folder):
    for number in range(4):
        Image.new("RGB", (40, 40), (60 * number, 0, 90)).save(
            bad_folder / "class0" / f"f{number}.png"
        )
    assert check(bad_folder)[1]["duplicates"] == []


def test_small_classes_are_told(bad_folder):
    (bad_folder / "class2").mkdir()
    for number in (30, 31):
        crop(number).save(bad_folder / "class2" / f"{number}.png")
    for number in range(32, 56):
        crop(number).save(bad_folder / "class0" / f"{number}.png")
    assert any(
        "class2" in one and "less than a tenth" in one for one in check(bad_folder)[1]["problems"]
    )


def test_the_report_shows_thumbnails_and_needs_nothing_else(bad_folder, tmp_path):
    content = (bad_folder / "class0" / "04.png").read_bytes()
    (bad_folder / "class1" / "copy.png").write_bytes(content)
    (bad_folder / "class1" / "<b>.png").write_bytes(b"no image")
    path = tmp_path / "report.html"
    check(bad_folder, "--report", str(path))
    page = path.read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert "http" not in page.replace("http-equiv", "")
    assert "&lt;b&gt;.png" in page
    assert "<b>.png" not in page


def test_the_command_of_the_guide(tmp_path, monkeypatch):
    page = tmp_path / "data.html"
    name, *arguments = documented("docs/train.md", "data check")
    assert (name, arguments.pop()) == ("data", page.name)
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(data, [*arguments, str(page)])
    assert done.stdout.startswith("1,437 images of train, 360 images of validation")
    assert done.exit_code in (0, 1)
    assert "<h2>Classes</h2>" in page.read_text()
