"""What a command that is to run in several processes makes of where they meet."""

from __future__ import annotations

import sys

import pytest
from torch.distributed.elastic.rendezvous import RendezvousConnectionError

from training import processes
from training.errors import TrainingError


@pytest.mark.parametrize("wrong", ["nonsense", "nonsense:abc", ":29500", "host:"])
def test_a_place_that_is_none_is_refused(wrong):
    with pytest.raises(TrainingError, match="--rendezvous is HOST:PORT"):
        processes.run_in_processes(1, 2, wrong)


def test_nobody_there_is_one_line_and_may_be_tried_again(monkeypatch, capsys):
    def meet(_arguments):
        raise RendezvousConnectionError("The connection\nhas failed.")

    monkeypatch.setattr(sys, "argv", ["fivecrop", "train", "recipe.toml"])
    monkeypatch.setattr(processes.torchrun, "run", meet)
    assert processes.run_in_processes(1, 2, "host:29500") == 1
    told = "nobody to meet at host:29500: The connection has failed."
    assert capsys.readouterr().err == f"fivecrop: error: {told}\n"
