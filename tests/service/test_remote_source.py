"""Bundles behind a URL: servers that speak S3 and Google's protocol, and a plain web server."""

from __future__ import annotations

import asyncio
import functools
import http.server
import threading
from pathlib import Path

import pytest

from service.bundle_cache import BundleCache
from service.classifier import Classifier, Options
from service.errors import BundleError, RepositoryError
from service.remote_source import RemoteSource
from service.repository_watch import RepositoryWatch
from service.settings import Settings

NAME = "digits-linear"


class WebServer:
    """A folder over plain HTTP, with the lists that web servers make; counts what it is asked."""

    def __init__(self, folder: Path):
        asked = self.asked = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_request(self, code="-", size="-"):
                asked.append(self.path)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
        )
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def web(growing_repository):
    served = WebServer(growing_repository.folder)
    thread = threading.Thread(target=served.server.serve_forever)
    thread.start()
    yield served
    served.server.shutdown()
    thread.join()
    served.server.server_close()


@pytest.fixture
def google(monkeypatch, growing_repository, free_port):
    """Returns `upload(version)`; the bucket is `gs://models/live` of a local server."""
    from gcp_storage_emulator.server import create_server

    port = free_port()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    # What it would ask the real service about a bucket; read when the package is imported.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import gcsfs

    with create_server("127.0.0.1", port, in_memory=True, default_bucket="models"):
        gcsfs.GCSFileSystem.clear_instance_cache()
        files = gcsfs.GCSFileSystem(use_listings_cache=False)
        upload = functools.partial(growing_repository.upload, files, "models/live")
        upload(1)
        yield upload
        gcsfs.GCSFileSystem.clear_instance_cache()


@pytest.fixture
async def serve(tmp_path, metrics):
    """Returns `serve(url)`: a classifier over the models behind a URL."""
    made = []

    async def serve(url, **given):
        settings = Settings(model_repository=url, model_cache=tmp_path / "cache", **given)
        made.append(await asyncio.to_thread(Classifier.build, settings, metrics))
        return made[-1]

    yield serve
    for classifier in made:
        await classifier.close()


async def version_of_answer(classifier, repository):
    answer = await classifier.classify(repository.image, Options(top_k=1))
    assert answer.predictions[0].index == repository.expected_class(answer.version)
    return answer.version


async def test_a_bucket_is_served_and_a_new_version_of_it_rolled_out(
    bucket, serve, growing_repository
):
    classifier = await serve("s3://models/live")
    assert await version_of_answer(classifier, growing_repository) == 1
    growing_repository.publish(2)
    bucket(2)
    await classifier.rollout.label(NAME, "stable", 1)
    await classifier.rollout.load(NAME, 2)
    assert classifier.rollout.versions(NAME) == [1, 2]
    await classifier.rollout.label(NAME, "stable", 2)
    assert await version_of_answer(classifier, growing_repository) == 2
    growing_repository.publish_broken(3)
    bucket(3)
    await classifier.rollout.follow()
    assert await version_of_answer(classifier, growing_repository) == 2
    (shown,) = classifier.describe_unavailable()
    assert (shown.version, shown.state) == (3, "failed")
    assert "is not the file that was published" in shown.reason


async def test_a_google_bucket_is_served_and_a_changed_version_noticed(
    google, serve, growing_repository
):
    classifier = await serve("gs://models/live")
    assert await version_of_answer(classifier, growing_repository) == 1
    growing_repository.publish_broken(2)
    google(2)
    await classifier.rollout.follow()
    assert await version_of_answer(classifier, growing_repository) == 1
    growing_repository.publish(2)
    google(2)
    await classifier.rollout.follow()
    assert await version_of_answer(classifier, growing_repository) == 2


async def test_a_web_server_is_served_and_watched(
    web, serve, growing_repository, metrics, tmp_path
):
    classifier = await serve(web.url)
    watch = RepositoryWatch(None, classifier.rollout, metrics, look_every_s=0.05)
    watch.start()
    growing_repository.publish(2)
    async with asyncio.timeout(20):
        while await version_of_answer(classifier, growing_repository) != 2:
            await asyncio.sleep(0.02)
    await watch.stop()


async def test_what_was_fetched_once_is_not_fetched_again(web, serve, growing_repository):
    await serve(web.url)
    assert sum("model.onnx" in path for path in web.asked) == 1
    await serve(web.url)
    assert sum("model.onnx" in path for path in web.asked) == 1


async def test_a_damaged_copy_is_fetched_again(web, serve, tmp_path, growing_repository):
    await serve(web.url)
    (copy,) = (tmp_path / "cache").rglob("model.onnx")
    copy.write_bytes(b"x" + copy.read_bytes()[1:])
    classifier = await serve(web.url)
    assert await version_of_answer(classifier, growing_repository) == 1
    assert sum("model.onnx" in path for path in web.asked) == 2


def test_a_broken_upload_never_reaches_the_cache(web, growing_repository, tmp_path):
    growing_repository.publish_broken(2)
    source = RemoteSource(web.url, BundleCache(tmp_path / "cache", 2**30))
    with pytest.raises(BundleError, match="is not the file that was published"):
        source.fetch(NAME, 2)
    assert list((tmp_path / "cache").iterdir()) == []
    growing_repository.publish(2)
    assert source.fetch(NAME, 2).manifest.version == 2


def test_a_version_without_its_manifest_is_not_there_yet(web, growing_repository, tmp_path):
    manifest = growing_repository.publish(2) / "bundle.json"
    text = manifest.read_bytes()
    manifest.unlink()
    (growing_repository.folder / "notes.txt").write_text("hello")
    source = RemoteSource(web.url, BundleCache(tmp_path / "cache", 2**30))
    assert source.list_versions() == {NAME: [1]}
    before = source.fingerprint(NAME, 2)
    manifest.write_bytes(text)
    assert source.list_versions() == {NAME: [1, 2]}
    assert source.fingerprint(NAME, 2) != before


def test_two_workers_that_fetch_at_once_end_with_one_copy(web, tmp_path):
    sources = [RemoteSource(web.url, BundleCache(tmp_path / "cache", 2**30)) for _ in range(4)]
    found = []
    threads = [
        threading.Thread(target=lambda one=one: found.append(one.fetch(NAME, 1).folder))
        for one in sources
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert sum("model.onnx" in path for path in web.asked) == 1


async def test_a_repository_that_cannot_be_reached_keeps_what_serves(
    web, serve, growing_repository
):
    classifier = await serve(web.url)
    web.server.shutdown()
    web.server.server_close()
    with pytest.raises(RepositoryError):
        await classifier.rollout.follow()
    assert await version_of_answer(classifier, growing_repository) == 1


@pytest.mark.parametrize("url", ["nothing://here", "http://127.0.0.1:1/models"])
async def test_a_url_that_leads_nowhere_is_one_clear_line(serve, url):
    with pytest.raises(RepositoryError) as refused:
        await serve(url)
    assert "\n" not in str(refused.value)
    assert url.partition("/")[0] in str(refused.value)


def test_a_bundle_in_the_folder_of_another_is_refused(web, growing_repository, tmp_path):
    growing_repository.publish(2).rename(growing_repository.folder / NAME / "7")
    source = RemoteSource(web.url, BundleCache(tmp_path / "cache", 2**30))
    with pytest.raises(BundleError, match="digits-linear/7 holds digits-linear@2"):
        source.fetch(NAME, 7)


async def test_the_cache_holds_to_its_size_and_keeps_what_serves(
    web, growing_repository, tmp_path, metrics
):
    cached = tmp_path / "cache"
    source = RemoteSource(web.url, BundleCache(cached, 1))  # room for nothing
    settings = Settings(model_repository=web.url, model_cache=cached, model_cache_mib=1)
    classifier = await asyncio.to_thread(Classifier.build, settings, metrics)
    for version in (2, 3, 4):
        growing_repository.publish(version, padding_mib=2)
        await classifier.rollout.reload(NAME)
        found = {int(path.name) for path in cached.glob(f"*/{NAME}/*")}
        # What it took the place of was in hand when it came.
        assert found == {version - 1, version}
        assert source.fetch(NAME, 1).manifest.version == 1
    assert await version_of_answer(classifier, growing_repository) == 4
    assert {int(path.name) for path in cached.glob(f"*/{NAME}/*")} == {1, 4}
    await classifier.close()


def test_a_cache_that_cannot_be_written_is_one_clear_line(web, tmp_path):
    (tmp_path / "file").touch()
    source = RemoteSource(web.url, BundleCache(tmp_path / "file" / "cache", 2**30))
    with pytest.raises(RepositoryError, match=r"file/cache cannot keep a model: Not a directory$"):
        source.fetch(NAME, 1)
