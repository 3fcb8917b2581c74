"""The report of an output, and the comparison of two."""

from __future__ import annotations

import base64
import io
import json
import re
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from service.cli import main
from service.score.comparison import Comparison, compare_outputs
from service.score.errors import ScoreError
from service.score.part_format import encode_part
from service.score.report import write_report
from service.score.row import Row, Stamp, tabulate


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_the_report_counts_what_the_rows_say_and_shows_samples(
    score, photos, read_rows, tmp_path, picture
):
    (photos / "<bad>.png").write_bytes(b"?")
    score(photos)
    result = run("score", "report", tmp_path / "scores")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "scores/_report.html").read_text()
    rows = [row for row in read_rows() if row["status"] != "error"]
    for label in {row["label"] for row in rows}:
        count = sum(row["label"] == label for row in rows)
        assert re.search(rf"<tr><th>{label}<td>.*?</div><td>{count}<", text), label
    assert "&lt;bad&gt;.png" in text
    assert "<bad>" not in text
    assert "unsupported_media<td>1" in text
    (first, *_) = re.findall(r"data:image/jpeg;base64,([^']+)", text)
    assert Image.open(io.BytesIO(base64.b64decode(first))).size == (32, 32)
    assert not re.search(r"(?:src|href)='(?!data:)", text), "it needs nothing from elsewhere"
    # A dataset reader passes over it.
    assert len(pq.read_table(tmp_path / "scores")) == len(rows) + 1


def test_the_report_has_confidence_abstentions_and_throughput(score, photos, read_rows, tmp_path):
    score(photos, "first")
    middle = sorted(row["score"] for row in read_rows("first"))[30]
    score(photos, min_score=middle)
    text = write_report(str(tmp_path / "scores"), max_bytes=10_000)
    rows = read_rows()
    abstained = sum(row["status"] == "abstained" for row in rows)
    assert 0 < abstained < len(rows)
    assert f"<tr><th>abstained<td>{abstained} ({abstained / 60:.1%})" in text
    for least in range(20):
        count = sum(int(row["score"] * 20) == least for row in rows)
        assert re.search(rf"<tr><th>{least / 20:.2f}<td>.*?</div><td>{count}<", text), least
    assert re.search(r"<tr><th>last run<td>60 images in [0-9.]+ s, [0-9.,]+/s", text)


def test_samples_are_found_in_shards_and_tables(score, picture, tmp_path):
    data = [picture(seed) for seed in range(4)]
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        for index, image in enumerate(data):
            about = tarfile.TarInfo(f"{index}.png")
            about.size = len(image)
            shard.addfile(about, io.BytesIO(image))
    pq.write_table(pa.table({"pixels": data}), tmp_path / "t.parquet")
    score(tmp_path / "s.tar", "tar")
    score(tmp_path / "t.parquet", "table", column="pixels")
    for out in ("tar", "table"):
        text = write_report(str(tmp_path / out), max_bytes=10_000)
        assert text.count("data:image/jpeg") == 4
    (tmp_path / "s.tar").unlink()
    text = write_report(str(tmp_path / "tar"), max_bytes=10_000)
    assert text.count(">gone<") == 4


def test_a_report_of_nothing_or_to_nowhere_is_one_line(score, photos, tmp_path):
    score(photos)
    for arguments, told in (
        ((tmp_path / "absent",), "holds no scores"),
        ((tmp_path / "scores", "--file", tmp_path / "no/where.html"), "cannot write"),
    ):
        result = run("score", "report", *arguments)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert told in result.stderr


def make_output(folder, answers, *, fingerprint="same", version=1):
    """An output whose rows are (path, label or None for an error, score)."""
    rows = [
        Row(id=index, path=path, status="error", error_code="image_corrupt")
        if label is None
        else Row(id=index, path=path, status="ok", label=label, index=0, score=score)
        for index, (path, label, score) in enumerate(answers)
    ]
    columns = ("id", "path", "status", "error_code", "label", "index", "score", "model")
    stamp = Stamp(model="m", version=version, bundle_digest="d")
    folder.mkdir()
    half = len(rows) // 2
    for part in (rows[:half], rows[half:]):
        name = f"part-{part[0].id:012}-{part[-1].id + 1:012}.jsonl"
        data = encode_part(tabulate(part, stamp, columns), "jsonl")
        (folder / name).write_bytes(data)
    manifest = {
        "spec_version": 1,
        "state": "done",
        "model": {"name": "m", "version": version},
        "options": {"format": "jsonl", "column": None, "tta": "none"},
        "input": {"fingerprint": fingerprint},
    }
    (folder / "_manifest.json").write_text(json.dumps(manifest))
    return str(folder)


FIRST = [("a", "cat", 0.9), ("b", "cat", 0.8), ("c", "dog", 0.7), ("d", None, 0), ("e", "dog", 0.6)]
SECOND = [
    ("a", "cat", 0.7),
    ("b", "dog", 0.9),
    ("c", "cat", 0.9),
    ("d", "cat", 0.5),
    ("e", "dog", 1),
]


def test_a_comparison_counts_agreement_flips_shifts_and_statuses(tmp_path):
    first = make_output(tmp_path / "a", FIRST)
    second = make_output(tmp_path / "b", SECOND, version=2)
    told = compare_outputs(first, second).describe()
    assert (told["first"], told["second"]) == ("m@1", "m@2")
    assert (told["images"], told["answered"], told["agreement"]) == (5, 4, 0.5)
    assert {(one["from"], one["to"], one["images"]) for one in told["flips"]} == {
        ("cat", "dog", 1),
        ("dog", "cat", 1),
    }
    assert told["status_changes"] == [{"from": "error", "to": "ok", "images": 1}]
    assert told["score_shift"]["mean"] == pytest.approx((-0.2 + 0.4) / 2)
    assert told["score_shift"]["p5"] == pytest.approx(-0.2, abs=0.006)
    assert told["score_shift"]["p95"] == pytest.approx(0.4, abs=0.006)
    assert [one["path"] for one in told["worst"]] == ["b", "c"]


def test_outputs_of_other_inputs_are_matched_by_path(tmp_path):
    first = make_output(tmp_path / "a", FIRST)
    shuffled = [SECOND[index] for index in (4, 2, 0, 1)] + [("x", "cat", 1.0)]
    second = make_output(tmp_path / "b", shuffled, fingerprint="other")
    told = compare_outputs(first, second).describe()
    assert (told["images"], told["only_first"], told["only_second"]) == (4, 1, 1)
    assert told["agreement"] == 0.5


def test_outputs_without_a_common_image_are_refused(tmp_path):
    first = make_output(tmp_path / "a", FIRST)
    second = make_output(tmp_path / "b", [("x", "a", 1), ("y", "a", 1)], fingerprint="other")
    with pytest.raises(ScoreError, match="no image in common"):
        compare_outputs(first, second)


def test_only_the_surest_disagreements_are_kept():
    comparison = Comparison(("a", "b"))
    for index in range(100):
        row = {"path": str(index), "status": "ok", "score": index / 100}
        comparison.add({**row, "label": "x"}, {**row, "label": "y"})
    assert [one["path"] for one in comparison.describe()["worst"]][:2] == ["99", "98"]
    assert len(comparison.worst) == 24


def test_two_versions_are_compared_with_a_contact_sheet(
    score, photos, growing_repository, tmp_path
):
    growing_repository.publish(2)
    given = {"model_repository": str(growing_repository.folder)}
    score(photos, "one", model="digits-linear@1", **given)
    score(photos, "two", model="digits-linear@2", **given)
    sheet = tmp_path / "sheet.png"
    result = run("compare", tmp_path / "one", tmp_path / "two", "--sheet", sheet)
    assert result.exit_code == 0, result.output
    assert "digits-linear@1 against digits-linear@2: 60 images in both" in result.stdout
    assert "agreement   0.00% of 60" in result.stdout
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        assert image.width > 6 * 160
    same = run("compare", tmp_path / "one", tmp_path / "one", "--json")
    assert json.loads(same.stdout)["agreement"] == 1.0
    result = run("compare", tmp_path / "one", tmp_path / "absent")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
