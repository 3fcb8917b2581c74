from __future__ import annotations

import io
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


def write_images(root):
    """Sixty digits in folders of their classes."""
    digits = load_digits_images()
    for index in range(60):
        folder = root / digits.class_names[digits.labels[index]]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.png").write_bytes(digits.image_bytes(index))
    return root


def test_a_bundle_is_told_with_its_measurement_and_fetches_nothing(
    tiny_bundle_repository, tmp_path
):
    write_images(tmp_path / "data")
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


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_is_read_on_a_phone_by_day_and_by_night(
    tiny_bundle_repository, run_dir, scheme, tmp_path
):
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed: scripts/install-system-packages.sh chromium")
    assert run(run_dir, "--out", tmp_path / "run.html").exit_code == 0
    bundle = ("digits-linear", "--repository", tiny_bundle_repository)
    assert run(*bundle, "--out", tmp_path / "bundle.html").exit_code == 0
    from training.data_cli import data

    images = write_images(tmp_path / "images")
    CliRunner().invoke(data, ["check", str(images), "--report", str(tmp_path / "data.html")])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        phone = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
        for name in ("run", "bundle", "data"):
            page = phone.new_page()
            page.goto((tmp_path / f"{name}.html").as_uri())
            page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = true)")
            # Nothing is wider than the screen, but what scrolls by itself.
            assert page.evaluate("document.documentElement.scrollWidth") == 360
            corner = Image.open(io.BytesIO(page.screenshot())).convert("L").getpixel((1, 1))
            assert (corner < 64) == (scheme == "dark")
            found = Axe().run(page).response["violations"]
            assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
        browser.close()


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
