"""New versions under continuous load, in a server of two workers: no failed request, no lie."""

from __future__ import annotations

import http.client
import json
import os
import signal
import threading
from collections import Counter

import pytest

from service.api_keys import KeyRing, KeyScope, make_key, write_keys

pytestmark = pytest.mark.e2e

NAME = "digits-linear"


@pytest.fixture
def start_live(start_server, growing_repository, tmp_path):
    """Returns `start_live(**options)`: a server of two workers, and `key`, which opens it all."""
    text, kept = make_key(KeyScope)
    write_keys(tmp_path / "keys.json", KeyRing(keys=(kept,)))

    def start(**options):
        server = start_server(
            growing_repository.folder,
            **{"workers": 2, "drain_s": 0, "api_keys": tmp_path / "keys.json", **options},
        ).wait_ready()
        server.headers = {"Authorization": f"Bearer {text}"}
        return server

    return start


def ask(server, method, path, body=None):
    """(status, document) over a connection of its own, so that either worker may answer."""
    connection = server.connect()
    connection.request(method, path, body, {**server.headers, "Connection": "close"})
    answer = connection.getresponse()
    document = json.loads(answer.read())
    connection.close()
    return answer.status, document


def served(server):
    """What the workers say that they serve: one set of versions for each of many connections."""
    return {
        tuple(model["version"] for model in ask(server, "GET", "/v1/models")[1]["models"])
        for _ in range(16)
    }


class Clients:
    """Send all the time, over kept and over new connections, and check every answer."""

    def __init__(self, server, repository):
        self.server, self.repository = server, repository
        self.answered, self.failed = Counter(), []
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._send, args=(kept,)) for kept in (True, True, False)
        ]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _send(self, keeps):
        connection = self.server.connect()
        while not self._is_over.is_set():
            try:
                connection.request(
                    "POST", "/v1/classify?top_k=1", self.repository.image, self.server.headers
                )
                answer = connection.getresponse()
                document = json.loads(answer.read())
                version = document["version"]
                best = document["predictions"][0]["index"]
                assert best == self.repository.expected_class(version), (version, best)
                self.answered[version] += 1
            except (OSError, http.client.HTTPException, KeyError, AssertionError) as error:
                self.failed.append(repr(error)[:200])
                connection.close()
            if not keeps:
                connection.close()
        connection.close()


def test_versions_change_under_load_without_a_failed_or_a_mixed_answer(
    start_live, growing_repository, wait_until
):
    server = start_live()
    with Clients(server, growing_repository) as clients:
        for version in range(2, 6):
            growing_repository.publish(version)
            status, document = ask(server, "POST", f"/v1/models/{NAME}:reload")
            assert (status, [one["version"] for one in document["models"]]) == (200, [version])
            # When it is answered every worker has followed, and the old version is gone.
            assert served(server) == {(version,)}
            before = clients.answered[version]
            wait_until(lambda v=version, b=before: clients.answered[v] > b + 50, "answers")
    assert clients.failed == []
    assert set(clients.answered) == {1, 2, 3, 4, 5}


def test_labels_loads_and_unloads_are_those_of_every_worker(start_live, growing_repository):
    server = start_live()
    growing_repository.publish(2)
    label = f"/v1/models/{NAME}/labels"
    assert ask(server, "PUT", f"{label}/stable", b'{"version": 1}')[0] == 200
    assert ask(server, "PUT", f"{label}/canary", b'{"version": 2}')[0] == 200
    assert served(server) == {(1, 2)}
    for reference, version in ((NAME, 1), (f"{NAME}@canary", 2)):
        path = f"/v1/classify?model={reference}"
        answers = [ask(server, "POST", path, growing_repository.image) for _ in range(8)]
        assert {document["version"] for _, document in answers} == {version}
    assert ask(server, "PUT", f"{label}/stable", b'{"version": 2}')[0] == 200
    assert served(server) == {(2,)}
    assert ask(server, "POST", f"/v1/models/{NAME}:unload")[0] == 200
    for _ in range(8):
        status, problem = ask(server, "POST", "/v1/classify", growing_repository.image)
        assert (status, problem["code"]) == (404, "model_not_found")
    assert ask(server, "POST", f"/v1/models/{NAME}/versions/1:load")[0] == 200
    assert served(server) == {(1, 2)}


def test_a_watched_repository_is_followed_by_every_worker_and_a_broken_version_by_none(
    start_live, growing_repository, wait_until
):
    server = start_live(model_watch=True)
    with Clients(server, growing_repository) as clients:
        growing_repository.publish(2)
        wait_until(lambda: served(server) == {(2,)}, "version 2 everywhere")
        growing_repository.publish_broken(3)

        def is_shown():
            shown = [ask(server, "GET", "/v1/models")[1]["unavailable"] for _ in range(8)]
            return all(one and one[0]["state"] == "failed" for one in shown)

        wait_until(is_shown, "the failure is shown by every worker")
        assert served(server) == {(2,)}
    assert clients.failed == []
    assert f"{NAME}@3 is not served" in server.stderr


def test_a_worker_that_starts_again_serves_what_the_others_serve(
    start_live, growing_repository, wait_until
):
    server = start_live()
    growing_repository.publish(2)
    assert ask(server, "PUT", f"/v1/models/{NAME}/labels/stable", b'{"version": 1}')[0] == 200
    growing_repository.publish_broken(3)
    dead = server.worker_pids()[0]
    os.kill(dead, signal.SIGKILL)
    wait_until(lambda: len(server.worker_pids()) == 2 and dead not in server.worker_pids(), "two")
    wait_until(lambda: len(served(server)) == 1 and served(server) == {(1, 2)}, "the same again")
    assert ask(server, "POST", f"/v1/models/{NAME}/versions/2:load")[0] == 200
    assert served(server) == {(1, 2)}
