"""Jobs over real worker processes: the service's answers, whatever way they come about."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from service.classifier import Classifier, Options
from service.metrics import Metrics
from service.score.errors import ScoreError
from service.settings import Settings


@pytest.fixture
def ask_service(tiny_bundle_repository):
    """Returns `ask(images, **options)`: the service's answers to encoded images."""

    def ask(images, **options):
        async def classify_all():
            settings = Settings(model_repository=tiny_bundle_repository)
            classifier = Classifier.build(settings, Metrics())
            try:
                return [await classifier.classify(one, Options(**options)) for one in images]
            finally:
                await classifier.close()

        return asyncio.run(classify_all())

    return ask


@pytest.mark.parametrize("tta", ["none", "ten_crop"])
def test_rows_are_the_answers_of_the_service_to_the_last_bit(
    with_workers, score, photos, read_rows, ask_service, tta
):
    summary = score(photos, tta=tta, embedding=True, probabilities=True, top_k=3, sha256=True)
    assert summary.state == "done"
    rows = read_rows()
    images = [Path(row["path"]).read_bytes() for row in rows]
    answers = ask_service(images, tta=tta, top_k=3, embedding=True)
    for row, answer in zip(rows, answers, strict=True):
        assert row["status"] == ("abstained" if answer.verdict.abstained else "ok")
        assert row["top_indices"] == [one.index for one in answer.predictions]
        assert row["top_labels"] == [one.label for one in answer.predictions]
        assert row["top_scores"] == [one.score for one in answer.predictions]
        assert (row["label"], row["score"]) == (row["top_labels"][0], row["top_scores"][0])
        assert np.array_equal(np.float32(row["probabilities"]), answer.probabilities)
        assert np.array_equal(np.float32(row["embedding"]), answer.embedding)
        assert (row["width"], row["height"], row["format"]) == (32, 32, "png")
        assert len(row["sha256"]) == 64


def test_any_workers_parts_and_formats_give_the_same_rows(with_workers, score, photos, read_rows):
    score(photos, "one", workers=1)
    rows = read_rows("one")
    assert [row["id"] for row in rows] == list(range(60))
    score(photos, "parts", workers=2, part_rows=7)
    assert read_rows("parts") == rows
    # The control: another model option gives other rows.
    score(photos, "other", tta="hflip")
    assert read_rows("other") != rows


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_text_formats_hold_the_same_as_parquet(score, photos, read_rows, form):
    extras = {"embedding": True, "probabilities": True, "limit": 9}
    score(photos, "parquet", **extras)
    score(photos, form, part_rows=4, format=form, **extras)
    assert read_rows(form) == read_rows("parquet")


def test_shards_are_the_whole_and_a_limit_is_its_beginning(score, photos, read_rows):
    score(photos, "all")
    for index in (1, 2, 3):
        score(photos, f"s{index}", shard=f"{index}/3")
    parts = [row for index in (1, 2, 3) for row in read_rows(f"s{index}")]
    assert sorted(parts, key=lambda row: row["id"]) == read_rows("all")
    score(photos, "few", limit=7)
    assert read_rows("few") == read_rows("all")[:7]


def test_hostile_images_are_rows_with_the_codes_of_the_service(
    score, tmp_path, read_rows, hostile_images
):
    folder = tmp_path / "hostile"
    folder.mkdir()
    expected = {}
    for index, (name, (make, code)) in enumerate(hostile_images.HOSTILE_IMAGES.items()):
        data = make()
        (folder / f"{index:03}").write_bytes(data)
        # What the edges refuse before the decoder sees it.
        is_url = data.startswith((b"http://", b"https://"))
        expected[index] = (name, "url_not_allowed" if is_url else str(code))
    assert score(folder, max_error_rate=1.0, workers=2).state == "done"
    rows = read_rows()
    assert {row["id"]: (expected[row["id"]][0], row["error_code"]) for row in rows} == expected
    assert {row["status"] for row in rows} == {"error"}


def test_more_errors_than_allowed_fail_the_job_and_lose_nothing(
    score, photos, tmp_path, read_rows, manifest_of
):
    for index in range(6):
        (photos / f"x{index}.png").write_bytes(b"not an image")
    summary = score(photos, max_error_rate=0.05)
    assert (summary.state, manifest_of()["state"]) == ("failed", "failed")
    assert len(read_rows()) == 66
    assert manifest_of()["counts"]["unsupported_media"] == 6
    assert score(photos, resume=True, max_error_rate=0.5).state == "done"
    assert len(read_rows()) == 66


def test_an_image_larger_than_the_service_reads_is_an_error_row(
    score, photos, read_rows, monkeypatch
):
    (photos / "000.png").write_bytes(b"\x89PNG" + bytes(5000))
    monkeypatch.setenv("FIVECROP_MAX_BODY_BYTES", "5000")
    score(photos)
    assert [row["error_code"] for row in read_rows()].count("body_too_large") == 1


def test_min_score_takes_the_place_of_the_thresholds(score, photos, read_rows):
    score(photos, "none", min_score=0.0)
    assert {row["status"] for row in read_rows("none")} == {"ok"}
    score(photos, "half", min_score=0.5)
    for row in read_rows("half"):
        assert row["status"] == ("ok" if row["score"] >= 0.5 else "abstained")
        assert row["label"] is not None


def test_a_stopped_job_goes_on_where_it_was(score, photos, read_rows, manifest_of):
    asked = iter([False] * 6)
    summary = score(photos, should_stop=lambda: next(asked, True), part_rows=3)
    assert (summary.state, manifest_of()["state"]) == ("stopped", "stopped")
    before = read_rows()
    assert 0 < len(before) < 60
    summary = score(photos, resume=True)
    assert summary.progress.resumed == len(before)
    score(photos, "whole")
    assert read_rows() == read_rows("whole")
    assert manifest_of()["state"] == "done"


def test_a_finished_job_resumes_to_itself(score, photos, read_rows):
    score(photos)
    rows = read_rows()
    summary = score(photos, resume=True)
    assert summary.progress.images_per_second == 0
    assert read_rows() == rows


def test_a_resume_fills_the_parts_that_are_missing(score, photos, read_rows, tmp_path):
    score(photos, part_rows=10, part_seconds=100.0)
    rows = read_rows()
    parts = sorted((tmp_path / "scores").glob("part-*"))
    assert len(parts) >= 4
    for part in (parts[0], parts[2]):
        part.unlink()
    (tmp_path / "scores/.part-000000000000-000000000010.parquet.99").write_bytes(b"half")
    score(photos, resume=True, part_rows=4)
    assert read_rows() == rows
    assert not list((tmp_path / "scores").glob(".part*"))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tta": "hflip"}, "options tta is hflip, was none"),
        ({"format": "csv"}, "options format is csv, was parquet"),
        ({"limit": 5}, "options limit is 5, was None"),
        ({}, "input fingerprint is"),
    ],
)
def test_a_resume_of_another_job_names_the_difference(score, photos, change, text):
    score(photos)
    if not change:
        (photos / "new.png").write_bytes(b"x")
    with pytest.raises(ScoreError, match=text):
        score(photos, resume=True, **change)


def test_a_resume_with_another_bundle_is_refused(score, photos, growing_repository):
    given = {"model_repository": str(growing_repository.folder)}
    score(photos, **given)
    growing_repository.publish(2)
    with pytest.raises(ScoreError, match=r"model version is 2, was 1; model bundle_digest is"):
        score(photos, resume=True, **given)
    assert score(photos, resume=True, model="digits-linear@1", **given).state == "done"


def test_tar_shards_and_parquet_tables_give_the_rows_of_their_images(
    score, picture, read_rows, tmp_path
):
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [picture(seed) for seed in range(20)]
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        for index, data in enumerate(images):
            about = tarfile.TarInfo(f"{index:02}.png")
            about.size = len(data)
            shard.addfile(about, io.BytesIO(data))
    pq.write_table(pa.table({"image": images}), tmp_path / "t.parquet", row_group_size=5)
    score(tmp_path / "s.tar", "tar", part_rows=4)
    score(tmp_path / "t.parquet", "table", workers=2)
    scores = [[row["top_scores"] for row in read_rows(out)] for out in ("tar", "table")]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 20


def test_file_names_that_are_no_text_are_written_as_far_as_they_are(
    score, picture, read_rows, tmp_path
):
    folder = tmp_path / "names"
    folder.mkdir()
    (folder / 'a"b,c\nd.png').write_bytes(picture(1))
    with open(bytes(folder) + b"/\xff.png", "wb") as file:  # noqa: PTH123
        file.write(picture(2))
    for form in ("parquet", "jsonl", "csv"):
        score(folder, form, format=form)
        names = [row["path"].removeprefix(str(folder)) for row in read_rows(form)]
        assert sorted(names) == ['/a"b,c\nd.png', "/\ufffd.png"]
        assert all(row["status"] != "error" for row in read_rows(form))


def test_the_manifest_says_what_was_done(score, photos, manifest_of, tiny_bundle_repository):
    score(photos)
    manifest = manifest_of()
    bundle = json.loads((tiny_bundle_repository / "digits-linear/1/bundle.json").read_text())
    assert manifest["model"]["name"] == bundle["name"]
    assert len(manifest["model"]["bundle_digest"]) == 64
    assert manifest["input"]["files"] == 60
    assert sum(manifest["counts"].values()) == 60
    assert manifest["parts"]


def test_a_job_commits_at_least_once_in_two_thousand_images(score, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{tmp_path}/absent-{index}.png\n" for index in range(4_100)))
    score(listed, max_error_rate=1, part_seconds=3600)
    assert len(list((tmp_path / "scores").glob("part-*"))) >= 4_100 / 2_000
