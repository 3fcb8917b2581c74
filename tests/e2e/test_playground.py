"""The playground in a real browser: what somebody in front of it does, sees and is told."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from service.errors import ErrorCode
from service.http_answer import STATUS

pytestmark = pytest.mark.browser

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "exported_models/cifar10-airbench/1/golden"
LABELS = {"0.jpeg": "airplane", "1.jpeg": "automobile"}
LIMIT_MS = 30_000  # only bounds a hang
expect.set_options(timeout=LIMIT_MS)
WIDTHS = {"wide": (1280, 900), "narrow": (360, 740)}

DROP = """async ([files]) => {
  const dropped = new DataTransfer();
  for (const [name, bytes] of files) {
    const data = Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0));
    dropped.items.add(new File([data], name));
  }
  for (const type of ["dragenter", "dragover", "drop"]) {
    document.querySelector("#drop").dispatchEvent(
      new DragEvent(type, { dataTransfer: dropped, bubbles: true, cancelable: true }));
  }
}"""


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed: scripts/install-system-packages.sh chromium")
    arguments = ["--no-sandbox", "--use-fake-device-for-media-stream"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def bundled(tmp_path_factory, make_server):
    with make_server(tmp_path_factory.mktemp("server"), ROOT / "exported_models") as server:
        yield server.wait_ready()


class Visit:
    """One visit of the page; what its browser complains about is kept."""

    def __init__(self, context, server, path=""):
        self.origin = f"http://127.0.0.1:{server.http_port}/"
        self.complaints = []
        # Chromium says this of every answer that is none, and pages cannot keep it from that.
        self.expected = ["the server responded with"]
        self.addresses = set()
        self.page = context.new_page()
        self.page.set_default_timeout(LIMIT_MS)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.addresses.add(request.url))
        self.page.goto(self.origin + path)

    def _hear(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def drop(self, **files):
        """Drops files, `name=bytes`; a double underscore in a name is a dot."""
        files = [
            (name.replace("__", "."), base64.b64encode(data).decode())
            for name, data in files.items()
        ]
        self.page.evaluate(DROP, [files])

    def wait_answered(self):
        expect(self.page.locator("#list .row")).not_to_have_count(0)
        expect(self.page.locator("#list [aria-busy=true]")).to_have_count(0)

    @property
    def best(self):
        return self.page.locator("#answer .best")

    def stage_pixels(self):
        self.page.evaluate("document.querySelector('.view').decode()")
        png = self.page.locator(".stage").screenshot()
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.fixture
def visit(browser, bundled):
    """`visit(server=..., **options of the browser's context)`."""
    contexts, visits = [], []

    def open_page(server=bundled, path="", **options):
        context = browser.new_context(**{"reduced_motion": "reduce", **options})
        contexts.append(context)
        visits.append(Visit(context, server, path))
        return visits[-1]

    yield open_page
    for context in contexts:
        context.close()
    for one in visits:
        foreign = {
            url for url in one.addresses if not url.startswith((one.origin, "data:", "blob:"))
        }
        assert not foreign
        told = [text for text in one.complaints if not any(part in text for part in one.expected)]
        assert told == []


def read(name):
    return (GOLDEN / name).read_bytes()


def upside_down(name):
    """The photograph enlarged, as a camera writes it that was held upside down."""
    exif = Image.Exif()
    exif[0x0112] = 3
    file = io.BytesIO()
    photograph = Image.open(GOLDEN / name).resize((640, 640), Image.Resampling.BICUBIC)
    photograph.rotate(180).save(file, "JPEG", exif=exif, quality=95)
    return file.getvalue()


# ---- answers ----


def test_a_dropped_photograph_gets_its_label_and_nothing_is_complained_about(visit):
    one = visit()
    one.drop(plane__jpeg=read("0.jpeg"))
    expect(one.best).to_contain_text(LABELS["0.jpeg"])
    expect(one.page.locator("#answer .predictions li")).to_have_count(5)
    expect(one.page.locator("#status")).to_contain_text("plane.jpeg: airplane, 98.2 %")
    expect(one.page.locator("figcaption")).to_contain_text("of 32 \u00d7 32 JPEG, upright.")
    expect(one.page.locator(".timings")).to_contain_text("infer")
    assert one.complaints == []


def test_the_answer_shows_scores_as_bars_how_far_to_trust_them_and_where_the_time_went(visit):
    one = visit()
    one.drop(plane__jpeg=read("0.jpeg"))
    one.wait_answered()
    thumbnail = one.page.locator("#list .thumbnail")
    assert thumbnail.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 32
    for bars, count in (("#list .row", 3), ("#answer", 5)):
        drawn = one.page.locator(f"{bars} .prediction").evaluate_all(
            """(rows) => rows.map((row) => [
                 row.querySelector(".score").textContent,
                 100 * row.querySelector(".fill").clientWidth
                   / row.querySelector(".track").clientWidth])"""
        )
        assert len(drawn) == count
        for score, width in drawn:
            assert float(score.split()[0]) == pytest.approx(width, abs=2)
    expect(one.page.locator("#answer .verdict")).to_contain_text(
        re.compile(r"Calibrated.* above 79\.0 %, were right 96\.5 % of the time")
    )
    told = one.page.locator(".timings").inner_text().split("\n")
    spent = {
        name.strip(): float(value.split()[0]) for name, value in pairwise(told) if "ms" in value
    }
    assert list(spent) == ["decode", "queue", "infer", "other", "round trip"]
    assert spent["decode"] > 0
    assert spent["infer"] > 0


def test_what_is_dropped_before_the_page_knows_its_server_is_answered_then(visit):
    one = visit()
    held = []
    one.page.route("**/playground.json", lambda route: held.append(route))
    one.page.reload()
    one.drop(plane__jpeg=read("0.jpeg"))
    expect(one.page.locator("#list .row")).to_contain_text("asking")
    held[0].continue_()
    expect(one.best).to_contain_text("airplane")


def test_of_several_files_the_damaged_one_says_so_and_the_others_are_answered(visit):
    one = visit()
    one.drop(a__jpeg=read("0.jpeg"), torn__jpeg=read("0.jpeg")[:400], notes__txt=b"not an image")
    one.drop(b__jpeg=read("1.jpeg"))
    one.wait_answered()
    rows = one.page.locator("#list .row")
    expect(rows).to_contain_text(["airplane", "The image is damaged", "no image", "automobile"])
    rows.nth(1).click()
    problem = one.page.locator("#answer .problem")
    expect(problem).to_contain_text("The image is damaged")
    expect(problem).to_contain_text("image_corrupt")
    assert one.complaints  # and nothing but what the fixture lets pass


def test_the_picture_is_the_upright_crop_that_the_network_saw(visit):
    one = visit()
    one.drop(straight__jpeg=read("0.jpeg"))
    one.wait_answered()
    straight = one.stage_pixels()
    one.page.click("#clear")
    one.drop(turned__jpeg=upside_down("0.jpeg"))
    one.wait_answered()
    turned = one.stage_pixels()
    assert abs(straight - turned).mean() < 6  # the JPEG in between
    assert abs(straight[::-1, ::-1] - turned).mean() > 20
    expect(one.best).to_contain_text("airplane")


def test_the_evidence_changes_pixels_as_far_as_its_slider_says(visit):
    one = visit()
    one.drop(plane__jpeg=read("0.jpeg"))
    expect(one.best).to_be_visible()
    bare = one.stage_pixels()
    one.page.check("#evidence")
    expect(one.page.locator(".overlay")).to_be_visible()
    changes = []
    for opacity in ("0", "50", "100"):
        one.page.fill("#opacity", opacity)
        changes.append(abs(one.stage_pixels() - bare).mean())
    assert changes[0] == 0
    assert changes[2] > changes[1] > 5
    full = one.stage_pixels()
    one.page.locator("#answer .prediction", has_text="automobile").click()
    expect(one.page.locator(".evidence-note")).to_contain_text("“automobile”")
    assert abs(one.stage_pixels() - full).mean() > 5
    one.page.select_option("#method", "occlusion")
    expect(one.page.locator(".evidence-note")).to_contain_text("“automobile”")
    expect(one.page.locator(".overlay")).to_be_visible()
    one.page.uncheck("#evidence")
    assert abs(one.stage_pixels() - bare).mean() == 0


def test_choices_ask_anew(visit):
    one = visit()
    one.drop(plane__jpeg=read("0.jpeg"))
    expect(one.best).to_be_visible()
    one.page.fill("#top-k", "3")
    one.page.press("#top-k", "Tab")
    one.page.select_option("#tta", "ten_crop")
    one.wait_answered()
    expect(one.page.locator("#answer .predictions li")).to_have_count(3)
    expect(one.page.locator(".views button")).to_have_count(10)
    first = one.stage_pixels()
    one.page.locator(".views button").nth(9).click()
    assert abs(one.stage_pixels() - first).mean() > 1


def test_of_several_views_the_one_that_the_evidence_is_about_comes_first(visit):
    wide = Image.open(GOLDEN / "0.jpeg").resize((640, 480), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    wide.save(file, "PNG")
    one = visit()
    one.drop(wide__png=file.getvalue())
    one.wait_answered()
    centre = one.stage_pixels()
    thumbnail = one.page.get_attribute("#list .thumbnail", "src")
    for policy, place in (("five_crop", 4), ("ten_crop", 4), ("hflip", 0), ("multi_scale", 0)):
        one.page.select_option("#tta", policy)
        one.wait_answered()
        expect(one.page.locator(".views button").nth(place)).to_have_attribute(
            "aria-pressed", "true"
        )
        assert abs(one.stage_pixels() - centre).max() == 0, policy
        assert one.page.get_attribute("#list .thumbnail", "src") == thumbnail


@pytest.mark.parametrize("width", WIDTHS)
def test_an_unsure_answer_says_that_it_abstains(visit, width):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    one = visit(viewport=dict(zip(("width", "height"), WIDTHS[width], strict=True)))
    one.drop(**{"a_name_as_long_as_that_of_a_photograph_of_a_telephone__png": file.getvalue()})
    expect(one.page.locator("#answer .abstained")).to_contain_text("under 79.0 %")
    expect(one.page.locator("#list .tag")).to_have_text("abstained")
    # Neither cut off nor pushed out by the name.
    tag, text = (one.page.locator(f"#list {part}").bounding_box() for part in (".tag", ".row-text"))
    assert text["x"] < tag["x"]
    assert tag["x"] + tag["width"] <= text["x"] + text["width"] + 1
    assert one.page.locator("#list .tag").evaluate("(tag) => tag.scrollWidth <= tag.clientWidth")


def test_images_are_pasted(visit):
    one = visit()
    expect(one.page.locator("#model option")).not_to_have_count(0)
    one.page.evaluate(
        """async (bytes) => {
          const pasted = new DataTransfer();
          const data = Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0));
          pasted.items.add(new File([data], "pasted.jpeg"));
          dispatchEvent(new ClipboardEvent("paste", { clipboardData: pasted }));
        }""",
        base64.b64encode(read("1.jpeg")).decode(),
    )
    expect(one.best).to_contain_text("automobile")


def test_the_camera_gives_a_picture(visit):
    one = visit(permissions=["camera"])
    one.page.click("#open-camera")
    expect(one.page.locator("#camera")).to_have_js_property("videoWidth", 640)
    one.page.click("#shoot")
    expect(one.page.locator("#list .row")).to_contain_text("camera-1.jpg")
    expect(one.best).to_be_visible()
    expect(one.page.locator("figcaption")).to_contain_text("640 \u00d7 480")


def test_the_strip_shows_what_happens(visit, bundled):
    one = visit()
    rate, latency = one.page.locator("#pulse-rate"), one.page.locator("#pulse-latency")
    expect(rate).to_contain_text("0.0 images/s")
    bundled.classify(read("0.jpeg"))
    expect(rate).to_contain_text(re.compile(r"0\.[1-9] images/s"))
    expect(latency).to_contain_text(re.compile(r"\d ms"))
    expect(one.page.locator("#pulse-batch")).to_contain_text("1.0 views")
    expect(one.page.locator("#pulse-queue")).to_contain_text("0 views")


def test_a_camera_that_is_refused_says_so(visit):
    one = visit(permissions=[])
    one.page.click("#open-camera")
    expect(one.page.locator("#camera-problem")).to_contain_text(re.compile("camera", re.I))
    one.page.keyboard.press("Escape")
    expect(one.page.locator("#camera-dialog")).to_be_hidden()


def test_the_code_it_shows_is_copied(visit):
    one = visit(permissions=["clipboard-read", "clipboard-write"])
    one.drop(plane__jpeg=read("0.jpeg"))
    one.wait_answered()
    one.page.locator("#answer .segments").get_by_text("Python", exact=True).click()
    one.page.get_by_role("button", name="Copy").click()
    expect(one.page.get_by_role("button", name="Copied")).to_be_visible()
    copied = one.page.evaluate("navigator.clipboard.readText()")
    assert copied == one.page.locator("#snippet").inner_text()
    assert "urllib" in copied


@pytest.mark.parametrize("language", ["curl", "Python", "gRPC", "JavaScript"])
def test_the_code_it_shows_does_the_same_again(visit, tmp_path, language):
    one = visit()
    name = "it's a plane, really?.jpeg"
    (tmp_path / name).write_bytes(read("0.jpeg"))
    one.page.set_input_files("#files", tmp_path / name)
    one.page.fill("#top-k", "2")
    one.page.press("#top-k", "Tab")
    one.page.select_option("#tta", "hflip")
    one.wait_answered()
    one.page.locator("#answer .segments").get_by_text(language, exact=True).click()
    code = one.page.locator("#snippet").inner_text()
    run = {
        "curl": ["bash", "-c", code.replace("curl ", "curl -s ", 1)],
        "Python": [sys.executable, "-c", code],
        "gRPC": [sys.executable, "-c", code],
        "JavaScript": ["node", "--input-type=module", "-e", code],
    }[language]
    if shutil.which(run[0]) is None:
        pytest.skip(f"there is no {run[0]}")
    done = subprocess.run(
        run,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    if language == "curl":
        told = [(p["label"], p["score"]) for p in json.loads(done.stdout)["predictions"]]
    else:
        told = [(label, float(score)) for label, score in map(str.split, done.stdout.splitlines())]
    shown = one.page.locator("#answer .predictions .label").all_inner_texts()
    assert [label for label, _ in told] == shown
    assert f"{told[0][1]:.1%}".replace("%", " %") in one.best.inner_text()


# ---- refusals ----


def test_every_error_code_has_its_own_words(visit):
    one = visit()
    wanted = {}

    def refuse(route):
        code = wanted["code"]
        body = {"code": code, "detail": "what the service says", "request_id": "r1"}
        route.fulfill(status=STATUS[code], json=body, headers={"retry-after": "7"})

    one.page.route("**/v1/classify*", refuse)
    titles = set()
    for code in ErrorCode:
        wanted["code"] = code
        one.drop(plane__jpeg=read("0.jpeg"))
        if code is ErrorCode.UNAUTHENTICATED:
            expect(one.page.locator("#key-dialog")).to_be_visible()
            one.page.keyboard.press("Escape")
        problem = one.page.locator("#answer .problem")
        expect(problem).to_contain_text(code)
        expect(problem).to_contain_text("What the service says.")
        expect(problem).to_contain_text("suggests 7 s")
        titles.add(problem.locator("h3").inner_text())
        one.page.click("#clear")
    assert len(titles) == len(ErrorCode)


def test_a_service_that_is_gone_is_said_to_be(visit):
    one = visit()
    expect(one.page.locator("#model option")).not_to_have_count(0)
    one.page.route("**/v1/classify*", lambda route: route.abort())
    one.expected.append("net::ERR_FAILED")
    one.drop(plane__jpeg=read("0.jpeg"))
    expect(one.page.locator("#answer .problem")).to_contain_text("does not answer")


def test_behind_keys_the_page_asks_for_one_and_forgets_it_with_its_tab(
    visit, tmp_path, make_server, growing_repository
):
    keys = tmp_path / "keys.json"
    command = [Path(sys.executable).with_name("fivecrop"), "keys", "add", "--file", keys]
    made = subprocess.run(
        [*command, "--scope", "infer"], capture_output=True, check=True, text=True
    )
    key = made.stdout.strip()
    (tmp_path / "server").mkdir()
    name, repository = growing_repository.NAME, growing_repository.folder
    growing_repository.publish(2)
    shutil.copytree(ROOT / "exported_models/cifar10-airbench", repository / "cifar10-airbench")
    options = {"version_policy": "all", "default_model": "cifar10-airbench", "api_keys": keys}
    with make_server(tmp_path / "server", repository, **options) as locked:
        locked.wait_ready()
        one = visit(locked)
        dialog = one.page.locator("#key-dialog")
        expect(dialog).to_be_visible()
        one.page.fill("#key", "fc_0_wrong")
        one.page.keyboard.press("Enter")
        expect(dialog).to_contain_text("does not know this key")
        one.page.fill("#key", key)
        one.page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        one.drop(plane__jpeg=read("0.jpeg"))
        expect(one.best).to_contain_text("airplane")
        expect(one.page.locator("#pulse-note")).to_contain_text("scope metrics")
        snippet = one.page.locator("#snippet").inner_text()
        assert "$FIVECROP_KEY" in snippet
        assert key not in one.page.content() + one.page.url
        # Other models, other versions, other ways to find the evidence.
        one.page.select_option("#model", name)
        one.page.select_option("#version", "1")
        one.wait_answered()
        first = one.best.inner_text()
        one.page.select_option("#version", "2")
        one.wait_answered()
        assert one.best.inner_text() != first
        one.page.check("#evidence")
        expect(one.page.locator(".overlay")).to_be_visible()
        one.page.reload()
        expect(one.page.locator("#model option")).not_to_have_count(0)
        kept = one.page.context.storage_state()["origins"]
        assert key not in json.dumps(kept)  # local storage and cookies
        another = one.page.context.new_page()
        another.goto(one.origin)
        expect(another.locator("#key-dialog")).to_be_visible()
        for page in one.page.context.pages:  # before they miss the server
            page.close()


# ---- for everybody ----


def find_faults(page):
    """What axe objects to, however little."""
    found = Axe().run(page).response["violations"]
    return [(one["id"], one["impact"], [node["html"] for node in one["nodes"]]) for one in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_documentation_of_the_api_is_fine_too(visit, scheme):
    one = visit(path="docs", color_scheme=scheme, viewport={"width": 360, "height": 740})
    operation = one.page.locator("#classify")
    operation.locator("summary").click()
    expect(operation).to_contain_text("top_k")
    assert find_faults(one.page) == []
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 360
    one.page.click("h1 a")
    expect(one.page.locator("#drop")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_nothing_and_nothing_sticks_out(visit, width, scheme):
    size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
    one = visit(viewport=size, color_scheme=scheme)
    expect(one.page.locator("#model option")).not_to_have_count(0)

    def examine(what):
        assert find_faults(one.page) == [], what
        assert one.page.evaluate("document.documentElement.scrollWidth") <= size["width"], what

    examine("empty")
    one.page.click("#open-card")
    expect(one.page.locator("#card")).to_contain_text("The 10 hardest classes")
    examine("model card")
    one.page.keyboard.press("Escape")
    one.drop(plane__jpeg=read("0.jpeg"), torn__jpeg=read("1.jpeg")[:400])
    one.wait_answered()
    one.page.select_option("#tta", "five_crop")
    one.wait_answered()
    one.page.check("#evidence")
    expect(one.page.locator(".overlay")).to_be_visible()
    one.page.locator("summary").click()
    examine("answer")
    one.page.locator("#list .row").nth(1).click()
    examine("problem")
    background = one.page.evaluate("getComputedStyle(document.body).backgroundColor")
    lightness = sum(map(int, re.findall(r"\d+", background)[:3]))
    assert (lightness > 600) == (scheme == "light")


def test_everything_can_be_done_with_the_keyboard(visit):
    one = visit()
    expect(one.page.locator("#model option")).not_to_have_count(0)
    with one.page.expect_file_chooser() as chooser:
        tab_to(one.page, "#choose")
        one.page.keyboard.press("Enter")
    chooser.value.set_files([GOLDEN / "0.jpeg", GOLDEN / "1.jpeg"])
    one.wait_answered()
    tab_to(one.page, "#list li:nth-child(2) .row")
    one.page.keyboard.press("Enter")
    expect(one.best).to_contain_text("automobile")
    tab_to(one.page, "#answer li:nth-child(2) .prediction")
    one.page.keyboard.press("Space")
    expect(one.page.locator(".overlay")).to_be_visible()
    tab_to(one.page, "#opacity")
    one.page.keyboard.press("Home")
    expect(one.page.locator(".overlay")).to_have_css("opacity", "0")
    tab_to(one.page, "[name=language]:checked")
    one.page.keyboard.press("ArrowRight")
    expect(one.page.locator("#snippet")).to_contain_text("urllib")


def tab_to(page, selector):
    """Presses Tab until the element has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement?.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} is out of reach")


def test_the_theme_can_be_chosen_and_stays(visit):
    one = visit(color_scheme="light")
    shade = "getComputedStyle(document.body).backgroundColor"
    light = one.page.evaluate(shade)
    for _ in range(2):
        one.page.click("#theme")
    assert one.page.evaluate(shade) != light
    one.page.reload()
    expect(one.page.locator("#theme")).to_have_text("Theme: dark")
    assert one.page.evaluate(shade) != light
