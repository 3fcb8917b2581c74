from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from service.cli import main
from training.config import dump_recipe, load_recipe
from training.data import load_digits_images

ROOT = Path(__file__).parents[2]
HISTORIES = Path(__file__).parent / "histories"


class Reader(HTMLParser):
    """Collects what a browser would fetch or run, and checks that tags are closed."""

    VOID = frozenset({"meta", "img", "br", "!doctype"})

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.tags, self.text = [], [], set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.sources += [value for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == []
    return reader


def run(*arguments):
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


@pytest.fixture
def run_dir(tmp_path):
    """A run folder with the history of one that learnt by heart."""
    folder = tmp_path / "run <1>"
    folder.mkdir()
    shutil.copy(HISTORIES / "overfitting.jsonl", folder / "history.jsonl")
    recipe = load_recipe(ROOT / "training/recipes/digits-lenet5.toml")
    (folder / "recipe.json").write_text(dump_recipe(recipe))
    facts = {"class_names": list("0123456789"), "data": {"validation": {"images": 540}}}
    (folder / "run.json").write_text(json.dumps(facts))
    Image.new("RGB", (40, 30), "red").save(folder / "curves.png")
    return folder


def test_a_run_is_told_with_its_diagnosis_in_one_file(run_dir, tmp_path):
    out = tmp_path / "deep" / "report.html"
    done = run(run_dir, "--out", out)
    assert done.exit_code == 0, done.stderr
    page = read(out)
    assert "overfitting" in page.text
    assert "validation loss is least in epoch 13" in page.text
    assert "run <1>" in page.text
    assert "digits-lenet5" in page.text
    assert len(page.sources) == 1


def test_a_bundle_is_told_with_its_measurement_and_fetches_nothing(
    tiny_bundle_repository, tmp_path
):
    digits = load_digits_images()
    for index in range(60):
        folder = tmp_path / "data" / digits.class_names[digits.labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(digits.image_bytes(index))
    evaluation = tmp_path / "evaluation"
    command = ["evaluate", "digits-linear", "--repository", str(tiny_bundle_repository)]
    command += ["--data", str(tmp_path / "data"), "--study", "flip", "--out", str(evaluation)]
    assert CliRunner().invoke(main, command).exit_code == 0
    out = tmp_path / "report.html"
    asked = ("digits-linear", "--repository", tiny_bundle_repository, "--with", evaluation)
    done = run(*asked, "--out", out)
    assert done.exit_code == 0, done.stderr
    page = read(out)
    assert "digits-linear, version 1" in page.text
    assert "macro recall, precision, F1" in page.text
    assert "Reflection, in a circle, 60 images" in page.text
    assert len(page.sources) == len(list(evaluation.glob("*.png")))
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not page.tags & {"script", "link", "iframe"}
    assert "@import" not in out.read_text()
    assert "url(" not in out.read_text()


def test_without_a_measurement_a_bundle_shows_its_own_plots(tiny_bundle_repository, tmp_path):
    out = tmp_path / "report.html"
    done = run("digits-linear", "--repository", tiny_bundle_repository, "--out", out)
    assert done.exit_code == 0, done.stderr
    assert len(read(out).sources) == 2


def test_what_there_is_nothing_to_tell_of_is_refused(tiny_bundle_repository, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    repository = ("--repository", tiny_bundle_repository)
    nothing = run("digits-linear", *repository, "--with", empty, "--out", tmp_path / "a.html")
    assert nothing.exit_code == 2
    assert "holds neither evaluation.json nor pictures" in nothing.stderr
    (empty / "evaluation.json").write_text('{"top1": 1}')
    broken = run("digits-linear", *repository, "--with", empty, "--out", tmp_path / "a.html")
    assert broken.exit_code == 2
    assert "no evaluation" in broken.stderr
    assert run("nothing", *repository).exit_code == 2
