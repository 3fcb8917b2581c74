"""A watched repository: what is published serves, what is not finished does not."""

from __future__ import annotations

import asyncio
import shutil

import pytest

from service.classifier import Classifier
from service.repository_watch import RepositoryWatch
from service.settings import Settings

NAME = "digits-linear"


@pytest.fixture
async def watched(growing_repository, metrics):
    settings = Settings(model_repository=growing_repository.folder)
    classifier = await asyncio.to_thread(Classifier.build, settings, metrics)
    watch = RepositoryWatch(growing_repository.folder, classifier.rollout, metrics)
    watch.start()
    yield classifier
    await watch.stop()
    await classifier.close()


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def versions(classifier, name=NAME):
    return classifier.rollout.versions(name)


async def test_a_published_version_serves_and_a_broken_one_does_not(watched, growing_repository):
    growing_repository.publish(2)
    await until(lambda: versions(watched) == [2])
    growing_repository.publish_broken(3)
    await until(lambda: any(one.version == 3 for one in watched.describe_unavailable()))
    assert versions(watched) == [2]
    growing_repository.publish(4)
    await until(lambda: versions(watched) == [4])


async def test_a_version_that_is_copied_in_serves_when_it_is_whole(watched, growing_repository):
    whole = growing_repository.publish(2)
    growing_repository.publish(3)
    await until(lambda: versions(watched) == [3])
    later = growing_repository.folder / NAME / "5"
    later.mkdir()
    # The worst order: what makes it a version comes first.
    for name in ("bundle.json", "golden", "model.onnx"):
        source, target = whole / name, later / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            text = source.read_bytes()
            if name == "bundle.json":
                text = text.replace(b'"version": 2', b'"version": 5')
            target.write_bytes(text)
        await asyncio.sleep(0.3)
    for path in whole.iterdir():
        if not (later / path.name).exists():
            (shutil.copytree if path.is_dir() else shutil.copy)(path, later / path.name)
    await until(lambda: versions(watched) == [5])


async def test_orders_of_another_server_on_the_same_repository_are_followed(
    watched, growing_repository, metrics
):
    growing_repository.publish(2)
    await until(lambda: versions(watched) == [2])
    settings = Settings(model_repository=growing_repository.folder)
    other = await asyncio.to_thread(Classifier.build, settings, metrics)
    await other.rollout.label(NAME, "stable", 1)
    await until(lambda: versions(watched) == [1, 2])
    await other.close()


async def test_work_in_progress_is_not_looked_at(watched, growing_repository, monkeypatch):
    looked = []
    follow = watched.rollout.follow

    async def record(names=None, **given):
        looked.append(names)
        await follow(names, **given)

    monkeypatch.setattr(watched.rollout, "follow", record)
    (growing_repository.folder / ".staging-x" / NAME / "9").mkdir(parents=True)
    (growing_repository.folder / ".staging-x" / NAME / "9" / "bundle.json").write_text("{}")
    growing_repository.publish(2)
    await until(lambda: versions(watched) == [2])
    assert all(names == {NAME} for names in looked)
