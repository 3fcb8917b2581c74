"""Priorities by name and by number."""

from __future__ import annotations

import pytest

from service.priority import Priority


@pytest.mark.parametrize(
    ("level", "priority"), [(0, "normal"), (1, "high"), (2, "normal"), (3, "low"), (2**63, "low")]
)
def test_a_number_of_the_open_inference_protocol_is_a_priority(level, priority):
    assert Priority.from_level(level) == priority
