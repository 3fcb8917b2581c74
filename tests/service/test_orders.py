"""What an operator ordered: its meaning, and its file under several writers."""

from __future__ import annotations

import multiprocessing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import BundleError
from service.orders import LABEL_PATTERN, ModelOrders, Orders, OrdersFile

VERSION = st.integers(1, 6)
CHANGE = st.one_of(
    st.tuples(st.just("load"), st.none() | VERSION),
    st.tuples(st.just("unload"), st.none() | VERSION),
    st.tuples(st.just("label"), st.sampled_from(["stable", "canary"]), st.none() | VERSION),
)


@given(st.lists(CHANGE), st.sets(VERSION))
def test_orders_written_and_read_are_the_same_orders(changes, chosen):
    orders = Orders()
    for verb, *arguments in changes:
        orders = orders.change("m", lambda one, v=verb, a=arguments: getattr(one, v)(*a))
    again = Orders.model_validate_json(orders.model_dump_json())
    assert again == orders
    assert again.of("m").apply(chosen) == orders.of("m").apply(chosen)


@given(st.lists(CHANGE), VERSION, st.sets(VERSION))
def test_the_last_order_about_a_version_counts(changes, version, chosen):
    orders = ModelOrders()
    for verb, *arguments in changes:
        orders = getattr(orders, verb)(*arguments)
    assert version in orders.load(version).apply(chosen)
    assert version in orders.label("blue", version).apply(chosen)
    assert version not in orders.unload(version).apply(chosen)
    assert orders.unload(None).apply(chosen) == set()
    assert chosen <= orders.load(None).apply(chosen)


@pytest.mark.parametrize("text", ["latest", "all", "1", "1st", "", "Up", "a" * 33, "a@b", "a/b"])
def test_words_that_mean_something_else_are_no_labels(text):
    assert not LABEL_PATTERN.fullmatch(text)


@pytest.mark.parametrize("text", ["stable", "canary", "latest-good", "v2", "all.of_it"])
def test_free_names_are_labels(text):
    assert LABEL_PATTERN.fullmatch(text)


@pytest.mark.parametrize("content", ["", "[]", '{"models": {"m": {"labels": {"stable": 0}}}}', "{"])
def test_a_file_that_is_no_orders_is_one_clear_line(tmp_path, content):
    path = tmp_path / ".orders.json"
    path.write_text(content)
    with pytest.raises(BundleError, match=r"^\.orders\.json"):
        OrdersFile(path).read()


def test_a_place_that_cannot_be_written_is_named_with_the_setting(tmp_path):
    with pytest.raises(BundleError, match="FIVECROP_MODEL_ORDERS"):
        OrdersFile(tmp_path / "absent" / "orders.json").change("m", lambda one: one.load(1))


def _load_many(path, versions):
    for version in versions:
        OrdersFile(path).change("m", lambda one, v=version: one.load(v))


def test_no_order_is_lost_when_several_processes_write(tmp_path):
    path = tmp_path / "orders.json"
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=_load_many, args=(path, range(first, 40, 2))) for first in (1, 2)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert OrdersFile(path).read().of("m").loaded == frozenset(range(1, 40))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["orders.json", "orders.json.lock"]
