"""What is left to do: ranges that are done, a limit, a shard."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.score.needs import Needs

POSITIONS = range(60)


@st.composite
def disjoint_ranges(draw):
    cuts = sorted(draw(st.sets(st.integers(0, 50), max_size=12)))
    pairs = list(zip(cuts[::2], cuts[1::2], strict=False))
    return draw(st.permutations(pairs))


@given(
    disjoint_ranges(),
    st.none() | st.integers(1, 55),
    st.integers(1, 4).flatmap(lambda n: st.tuples(st.integers(0, n - 1), st.just(n))),
)
def test_needs_are_the_positions_that_a_plain_set_leaves(done, limit, shard):
    needs = Needs(done, limit=limit, shard=shard)
    finished = {position for start, stop in done for position in range(start, stop)}
    mine = {
        position
        for position in POSITIONS
        if position % shard[1] == shard[0] and (limit is None or position < limit)
    }
    assert {one for one in POSITIONS if needs.needs(one)} == mine - finished
    assert {one for one in POSITIONS if needs.is_done(one)} == finished & set(POSITIONS)
    assert needs.count_mine(len(POSITIONS)) == len(mine)


@given(disjoint_ranges(), st.integers(0, 59), st.integers(1, 20))
def test_a_stretch_with_a_needed_position_is_never_passed_over(done, start, length):
    needs = Needs(done)
    if any(needs.needs(position) for position in range(start, start + length)):
        assert needs.needs_any(start, start + length)


def test_a_stretch_that_is_done_is_passed_over():
    needs = Needs([(10, 20), (20, 30)], limit=50)
    assert not needs.needs_any(12, 30)
    assert needs.needs_any(12, 31)
    assert not needs.needs_any(50, 60)
