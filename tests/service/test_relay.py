"""A change that one worker made: the others follow, and it hears when they have."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.relay import Relay
from service.supervisor_link import SupervisorLink


class Wires:
    """Keeps what a relay says, by worker."""

    def __init__(self, *members):
        self.said = []
        self.relay = Relay(lambda index, line: self.said.append((index, line)))
        for member in members:
            self.relay.join(member, is_late=False)


def test_everybody_else_follows_and_then_the_change_is_settled():
    wires = Wires(1, 2, 3)
    wires.relay.hear(2, "change t cats 1,2")
    assert wires.said == [(1, "follow t cats 1,2"), (3, "follow t cats 1,2")]
    wires.relay.hear(3, "followed t yes")
    assert len(wires.said) == 2
    wires.relay.hear(1, "followed t yes")
    assert wires.said[2:] == [(2, "settled t yes")]


def test_one_that_could_not_follow_is_told():
    wires = Wires(1, 2, 3)
    wires.relay.hear(1, "change t cats -")
    wires.relay.hear(2, "followed t no")
    wires.relay.hear(3, "followed t yes")
    assert wires.said[-1] == (1, "settled t no")


def test_alone_a_worker_waits_for_nobody():
    wires = Wires(1)
    wires.relay.hear(1, "change t cats 1")
    assert wires.said == [(1, "settled t yes")]


def test_nobody_waits_for_a_worker_that_died():
    wires = Wires(1, 2)
    wires.relay.hear(1, "change t cats 1")
    wires.relay.leave(2)
    assert wires.said[-1] == (1, "settled t yes")
    wires.relay.hear(1, "change u cats 1")
    wires.relay.leave(1)


def test_who_comes_late_makes_everybody_look_again():
    wires = Wires(1)
    wires.relay.join(2, is_late=True)
    assert wires.said == [(1, "follow -"), (2, "follow -")]


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from(["change", "yes", "no", "leave"]))))
def test_each_change_of_a_worker_that_lives_is_settled_exactly_once(events):
    wires = Wires(1, 2, 3, 4)
    alive, changes, open_tokens = {1, 2, 3, 4}, {}, {}
    for number, (index, event) in enumerate(events):
        if index not in alive:
            continue
        if event == "change":
            changes[f"t{number}"] = index
            open_tokens[f"t{number}"] = alive - {index}
            wires.relay.hear(index, f"change t{number} cats 1")
        elif event == "leave":
            alive.discard(index)
            wires.relay.leave(index)
        else:
            for token, missing in open_tokens.items():
                if index in missing:
                    missing.discard(index)
                    wires.relay.hear(index, f"followed {token} {event}")
    for index in sorted(alive):
        for token, missing in open_tokens.items():
            if index in missing:
                wires.relay.hear(index, f"followed {token} yes")
    settled = [line.split()[1] for _, line in wires.said if line.startswith("settled")]
    assert len(settled) == len(set(settled))
    assert {token for token, asker in changes.items() if asker in alive} <= set(settled)


@pytest.fixture
async def pair():
    """A supervisor's end, and the link of a worker that serves version 3 of everything."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_unix_connection(sock=ours)
    link = SupervisorLink(theirs.detach())
    followed, gone = [], asyncio.Event()

    async def follow(name):
        followed.append(name)
        if name == "broken":
            raise RuntimeError("no")
        return [] if name is None else [3]

    link.tell_ready(on_supervisor_gone=gone.set, follow=follow)
    assert await reader.readline() == b"ready\n"
    yield link, reader, writer, followed, gone
    writer.close()
    await asyncio.wait_for(gone.wait(), 20)
    link._socket.close()


@pytest.mark.parametrize(
    ("request_line", "answer"),
    [
        (b"follow t cats 3\n", b"followed t yes\n"),
        (b"follow t cats 2,3\n", b"followed t no\n"),
        (b"follow t cats -\n", b"followed t no\n"),
        (b"follow t broken 3\n", b"followed t no\n"),
    ],
)
async def test_a_worker_says_whether_it_serves_what_the_other_does(pair, request_line, answer):
    _, reader, writer, _, _ = pair
    writer.write(request_line)
    assert await reader.readline() == answer


async def test_a_worker_waits_until_the_others_have_followed(pair):
    link, reader, writer, followed, _ = pair
    change = asyncio.create_task(link.tell_others("cats", [2, 1]))
    verb, token, *words = (await reader.readline()).decode().split()
    assert (verb, words) == ("change", ["cats", "1,2"])
    # In pieces, and with others between.
    writer.write(b"follow - \nsettled other yes\nsett")
    await asyncio.sleep(0.01)
    assert not change.done()
    writer.write(f"led {token} no\n".encode())
    assert await change is False
    assert followed == [None]


async def test_without_a_supervisor_there_are_no_others():
    link = SupervisorLink(None)
    assert await link.tell_others("cats", [1])
