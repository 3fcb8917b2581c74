"""Answers: averaging of views, and the order of classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from service.bundle.postprocess import average_views, predict, top_k, weigh
from service.errors import ErrorCode, RequestError


def distributions(views: st.SearchStrategy[int] | int = 1) -> st.SearchStrategy[np.ndarray]:
    """Float32 [V, C] whose rows sum to about 1, as a softmax gives them; zeros happen."""
    counts = npst.arrays(
        np.int32,
        st.tuples(views if not isinstance(views, int) else st.just(views), st.integers(2, 40)),
        elements=st.integers(0, 1000),
    )
    return counts.map(lambda a: (a + (a.sum(axis=1, keepdims=True) == 0)).astype(np.float32)).map(
        lambda a: a / a.sum(axis=1, keepdims=True)
    )


@given(
    scores=npst.arrays(
        np.float32, st.integers(1, 60), elements=st.sampled_from([0, 0.125, 0.25, 1])
    ),
    k=st.integers(1, 70),
)
def test_top_k_is_a_sort_by_score_then_index(scores, k):
    oracle = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:k]
    assert top_k(scores, k) == oracle


@given(
    scores=npst.arrays(np.float32, st.integers(1, 1500), elements=st.floats(0, 1, width=32)),
    k=st.integers(1, 10),
)
def test_top_k_finds_the_best_of_many_classes(scores, k):
    oracle = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:k]
    assert top_k(scores, k) == oracle


def test_all_classes_alike_are_ordered_by_index():
    assert top_k(np.full(1000, 0.001, np.float32), 5) == [0, 1, 2, 3, 4]


def test_a_huge_k_gives_every_class_once():
    scores = np.array([0.2, 0.5, 0.3], np.float32)
    assert top_k(scores, 10**9) == [1, 2, 0]


def test_predictions_carry_label_index_and_score():
    first, second = predict(np.array([0.25, 0.75], np.float32), ("cat", "dog"), 2)
    assert (first.label, first.index, first.score) == ("dog", 1, 0.75)
    assert (second.label, second.index, second.score) == ("cat", 0, 0.25)
    assert type(first.score) is float
    assert type(first.index) is int


@pytest.mark.parametrize("average", ["arithmetic", "geometric"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("views", [1, 3])
def test_output_that_is_not_a_number_is_refused(bad, views, average):
    probabilities = np.full((views, 4), 0.25, np.float32)
    probabilities[-1, 2] = bad
    with pytest.raises(RequestError) as caught:
        average_views(probabilities, average)
    assert caught.value.code is ErrorCode.NONFINITE_OUTPUT


@given(distributions())
def test_one_view_is_passed_on_untouched(probabilities):
    for average in ("arithmetic", "geometric"):
        assert np.array_equal(average_views(probabilities, average), probabilities[0])


@given(distributions(st.integers(2, 10)))
def test_arithmetic_mean_is_the_mean(probabilities):
    mean = average_views(probabilities)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, probabilities.astype(np.float64).mean(axis=0), atol=1e-6)
    assert mean.sum() == pytest.approx(1, abs=1e-5)


@given(distributions(st.integers(2, 10)))
def test_geometric_mean_is_a_distribution(probabilities):
    mean = average_views(probabilities, "geometric")
    assert mean.dtype == np.float32
    assert np.isfinite(mean).all()
    assert (mean >= 0).all()
    assert mean.sum() == pytest.approx(1, abs=1e-5)


@given(distributions(st.integers(2, 10)), st.randoms(use_true_random=False))
def test_order_of_views_does_not_matter(probabilities, random):
    order = list(range(len(probabilities)))
    random.shuffle(order)
    for average in ("arithmetic", "geometric"):
        shuffled = average_views(probabilities[order], average)
        np.testing.assert_allclose(average_views(probabilities, average), shuffled, atol=1e-5)


@given(distributions(), st.integers(2, 10))
def test_equal_views_average_to_themselves(probabilities, views):
    repeated = np.repeat(probabilities, views, axis=0)
    for average in ("arithmetic", "geometric"):
        np.testing.assert_allclose(average_views(repeated, average), probabilities[0], atol=1e-5)


def test_geometric_mean_of_two_views_by_hand():
    mean = average_views(np.array([[0.8, 0.2], [0.5, 0.5]], np.float32), "geometric")
    # sqrt(0.4) : sqrt(0.1) = 2 : 1
    np.testing.assert_allclose(mean, [2 / 3, 1 / 3], atol=1e-6)


def test_one_view_vetoes_a_class_in_the_geometric_mean_only():
    probabilities = np.array([[0.9, 0.1], [0, 1]], np.float32)
    assert average_views(probabilities, "geometric")[0] < 1e-6
    assert average_views(probabilities, "arithmetic")[0] == pytest.approx(0.45)


def test_members_count_by_their_weights():
    one, two = np.array([1, 0], np.float32), np.array([0.2, 0.8], np.float32)
    np.testing.assert_allclose(weigh([one, two], [1, 3]), [0.4, 0.6], rtol=1e-6)
    np.testing.assert_allclose(weigh([one, two], [7, 7]), [0.6, 0.4], rtol=1e-6)
