"""Which GPU a worker gets."""

from __future__ import annotations

import pytest

from service.devices import choose_gpu, count_gpus


@pytest.mark.parametrize(
    ("gpus", "chosen"), [(1, [0, 0, 0, 0]), (2, [0, 1, 0, 1]), (4, [0, 1, 2, 3]), (0, [0] * 4)]
)
def test_workers_take_turns_over_the_gpus(gpus, chosen):
    assert [choose_gpu(index, gpus) for index in (1, 2, 3, 4)] == chosen


def test_machine_without_a_driver_has_no_gpus(monkeypatch):
    def load(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", load)
    assert count_gpus() == 0
