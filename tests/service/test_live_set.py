"""The live set as a state machine: any history of publishing, breaking and orders."""

from __future__ import annotations

import datetime
import hashlib
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from service.bundle.combination import Ensemble, FoundCombination, WeightedMember
from service.errors import BundleError, MemoryBudgetError
from service.live_set import LiveSet
from service.orders import ModelOrders, Orders
from service.version_policy import VersionPolicy

VERSIONS = st.integers(1, 5)
NAMES = st.sampled_from(["a", "b"])


def digest_of(content):
    return hashlib.sha256(content.encode()).hexdigest()


class FakeSource:
    """A repository in memory: content by name and version; `bad` content proves itself never."""

    def __init__(self):
        self.content: dict[str, dict[int, str]] = {}

        self.combined: dict[str, dict[int, Ensemble]] = {}

    def list_versions(self):
        return {name: sorted(versions) for name, versions in self.content.items() if versions}

    def list_combinations(self):
        return {name: sorted(versions) for name, versions in self.combined.items() if versions}

    def read_combination(self, name, version):
        manifest = self.combined.get(name, {}).get(version)
        if manifest is None:
            raise BundleError("there is no such combination")
        return FoundCombination(manifest=manifest, digest=manifest.model_dump_json())

    def combine(self, version, *members, name="c"):
        """Publishes an ensemble of bundles (name, version) as they are in the repository now."""
        made = Ensemble(
            name=name,
            version=version,
            created=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
            members=tuple(
                WeightedMember(model=f"{of}@{at}", digest=digest_of(self.content[of].get(at, "")))
                for of, at in members
            ),
        )
        self.combined.setdefault(name, {})[version] = made

    def fetch(self, name, version):
        content = self.content.get(name, {}).get(version)
        if content is None:
            raise BundleError("there is no such bundle")
        return SimpleNamespace(
            digest=digest_of(content), content=content, name=name, version=version
        )

    def read_digest(self, name, version):
        return self.fetch(name, version).digest

    def fingerprint(self, name, version):
        return self.content.get(name, {}).get(version)

    def hide_place(self, text):
        return text


class Proved:
    """A model that holds memory until it is forgotten."""

    def __init__(self, bundle, memory_bytes=1):
        self.bundle, self.name, self.version = bundle, bundle.name, bundle.version
        self.memory_bytes = memory_bytes
        self.labels = ("cat", "dog")


def make_live(source, policy, **given):
    counts = SimpleNamespace(failures=[], proofs=[])

    def prove(bundle, admit):
        counts.proofs.append((bundle.name, bundle.version))
        admit(1)
        if bundle.content.startswith("bad"):
            raise BundleError("it does not reproduce its golden samples")
        return Proved(bundle)

    metrics = SimpleNamespace(count_load_failure=lambda *what: counts.failures.append(what))
    live = LiveSet(
        **{
            "source": source,
            "policies": {},
            "default_policy": policy,
            "prove": prove,
            "memory_bytes": None,
            "metrics": metrics,
            **given,
        }
    )
    return live, counts


def serving(live, name="a"):
    return {version for of, version in live.serving if of == name}


def settle(live, orders=None, **given):
    live.commit(live.settle(orders or Orders(), **given))
    for model in list(live.draining):
        live.forget(model)


class LiveSetMachine(RuleBasedStateMachine):
    """Whatever happens, what serves is good, ordered, and never nothing without an order."""

    @initialize(count=st.none() | st.integers(1, 3))
    def start(self, count):
        self.source = FakeSource()
        self.policy = VersionPolicy(latest=count)
        self.live, _ = make_live(self.source, self.policy)
        self.orders = Orders()
        self.number = 0

    def write(self, name, version, kind):
        self.number += 1
        self.source.content.setdefault(name, {})[version] = f"{kind}{self.number}"

    @rule(name=NAMES, version=VERSIONS, kind=st.sampled_from(["good", "good", "bad"]))
    def publish_or_replace(self, name, version, kind):
        self.write(name, version, kind)

    @rule(name=NAMES, version=VERSIONS)
    def delete(self, name, version):
        self.source.content.get(name, {}).pop(version, None)

    @rule(name=NAMES, version=st.none() | VERSIONS, verb=st.sampled_from(["load", "unload"]))
    def order(self, name, version, verb):
        self.orders = self.orders.change(name, lambda one: getattr(one, verb)(version))

    @rule(name=NAMES, label=st.sampled_from(["stable", "x"]), version=st.none() | VERSIONS)
    def label(self, name, label, version):
        self.orders = self.orders.change(name, lambda one: one.label(label, version))

    @rule(version=VERSIONS, of_a=VERSIONS, of_b=VERSIONS)
    def publish_combination(self, version, of_a, of_b):
        self.source.content.setdefault("a", {})
        self.source.content.setdefault("b", {})
        self.source.combine(version, ("a", of_a), ("b", of_b))

    @rule(version=VERSIONS)
    def delete_combination(self, version):
        self.source.combined.get("c", {}).pop(version, None)

    @rule(version=st.none() | VERSIONS, verb=st.sampled_from(["load", "unload"]))
    def order_combination(self, version, verb):
        self.order("c", version, verb)

    @rule(names=st.none() | st.sets(st.sampled_from(["a", "b", "c"])), retry=st.booleans())
    def follow(self, names, retry):
        before = dict(self.live.serving)
        combined = dict(self.live.combinations)
        settled = self.live.settle(self.orders, names, retry=retry)
        # Until it is committed, nothing changes.
        assert (self.live.serving, self.live.combinations) == (before, combined)
        self.live.commit(settled)
        self.check_combinations(combined)
        if combined or self.live.combinations:
            return  # it keeps members in service, which the checks of bundles know nothing of
        if names is not None:
            names = names - {"c"}
        for name in {"a", "b"} if names is None else names:
            self.check(name, {version for of, version in before if of == name})
        for key in before:
            if names is not None and key[0] not in names:
                assert self.live.serving[key] is before[key]

    def check_combinations(self, before):
        live, source = self.live, self.source
        for key, one in live.combinations.items():
            # The members that it was made of are those that serve.
            members = zip(one.manifest.members, one.models, strict=True)
            for member, model in members:
                assert member.digest == model.bundle.digest
                assert live.serving[model.name, model.version] is model
            assert key in before or one.manifest == source.combined["c"][key[1]]
        if self.orders.of("c").is_unloaded:
            assert not live.combinations
        # What can serve by itself does, if the policy or an order chooses it.
        newest = max(source.combined.get("c", {}), default=None)
        if newest is None or self.orders.of("c").keeps_out(newest):
            return
        for member in source.combined["c"][newest].members:
            name, version = member.model[0], int(member.model[2:])
            content = source.content.get(name, {}).get(version, "bad")
            if content.startswith("bad") or self.orders.of(name).keeps_out(version):
                return
            if digest_of(content) != member.digest:
                return
        assert ("c", newest) in live.combinations

    def check(self, name, before):
        served = serving(self.live, name)
        content = self.source.content.get(name, {})
        orders = self.orders.of(name)
        good = {version for version in content if content[version].startswith("good")}
        failing = content.keys() - good - served
        assert not served & orders.unloaded
        if orders.is_unloaded:
            assert not served
            return
        # Nothing serves that is neither in the repository nor served before.
        assert served <= good | before
        ordered = (orders.loaded | set(orders.labels.values())) - orders.unloaded
        assert ordered & good <= served
        # A model is never lost to a bad version or a deletion.
        if before - orders.unloaded and not self.policy.choose(sorted(content), failing):
            assert served
        # What is good in the repository serves as the repository has it.
        for version in served & good:
            assert self.live.serving[name, version].bundle.content == content[version]

    @invariant()
    def failures_are_shown_and_only_about_what_does_not_serve_as_it_is(self):
        for one in getattr(self, "live", None).unavailable() if hasattr(self, "live") else ():
            assert one.state in ("failed", "draining")
            assert one.state == "draining" or one.reason


LiveSetMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestLiveSet = LiveSetMachine.TestCase


@pytest.fixture
def source():
    source = FakeSource()
    source.content["a"] = {1: "good1"}
    return source


def test_a_broken_new_version_keeps_the_old_one_and_is_tried_once(source):
    live, counts = make_live(source, VersionPolicy())
    settle(live)
    source.content["a"][2] = "bad"
    for _ in range(3):
        settle(live)
    assert serving(live) == {1}
    assert (counts.failures, counts.proofs.count(("a", 2))) == ([("a@2", "bundle")], 1)
    (shown,) = live.unavailable()
    assert (shown.version, shown.state) == (2, "failed")
    assert "golden" in shown.reason
    settle(live, retry=True)
    assert counts.proofs.count(("a", 2)) == 2
    source.content["a"][2] = "good2"
    settle(live)
    assert serving(live) == {2}
    assert live.unavailable() == ()


def test_a_version_replaced_by_a_broken_one_serves_on_as_it_was(source):
    live, _ = make_live(source, VersionPolicy())
    settle(live)
    source.content["a"][1] = "bad"
    settle(live)
    assert live.serving["a", 1].bundle.content == "good1"
    assert live.unavailable()[0].state == "failed"


def test_a_repository_that_lost_a_model_goes_on_serving_it(source):
    live, _ = make_live(source, VersionPolicy())
    settle(live)
    source.content.clear()
    settle(live)
    assert serving(live) == {1}


def test_a_labelled_version_outlives_the_policy_until_the_label_moves(source):
    live, _ = make_live(source, VersionPolicy())
    stable = Orders(models={"a": ModelOrders(labels={"stable": 1})})
    settle(live, stable)
    source.content["a"][2] = "good2"
    settle(live, stable)
    assert serving(live) == {1, 2}
    settle(live, Orders(models={"a": ModelOrders(labels={"stable": 2})}))
    assert serving(live) == {2}


def test_models_that_the_settings_do_not_name_serve_only_by_order(source):
    source.content["b"] = {1: "good"}
    live, _ = make_live(source, None, policies={"a": VersionPolicy()})
    settle(live)
    assert (serving(live), serving(live, "b")) == ({1}, set())
    settle(live, Orders(models={"b": ModelOrders(loaded=frozenset({1}))}))
    assert (serving(live), serving(live, "b")) == ({1}, {1})


def test_what_does_not_fit_the_memory_is_refused_in_one_clear_line_and_fits_later(source):
    live, _ = make_live(source, VersionPolicy(), memory_bytes=2)
    source.content["a"][2] = "good2"
    loaded = Orders(models={"a": ModelOrders(loaded=frozenset({1, 2}))})
    settle(live, loaded)
    source.content["b"] = {1: "good"}
    settle(live, loaded)
    assert (serving(live), serving(live, "b")) == ({1, 2}, set())
    failure = live.failure("b")
    assert isinstance(failure.error, MemoryBudgetError)
    assert "FIVECROP_MODEL_MEMORY_MIB" in failure.reason
    settle(live, Orders())
    settle(live, Orders())
    assert (serving(live), serving(live, "b")) == ({2}, {1})


def test_a_model_that_drains_still_counts_against_the_memory(source):
    live, _ = make_live(source, VersionPolicy(), memory_bytes=2)
    settle(live)
    source.content["a"][2] = "good2"
    live.commit(live.settle(Orders()))
    source.content["b"] = {1: "good"}
    live.commit(live.settle(Orders()))
    assert isinstance(live.failure("b").error, MemoryBudgetError)
    live.forget(live.draining[0])
    live.commit(live.settle(Orders()))
    assert serving(live, "b") == {1}


def test_a_deleted_version_serves_on_while_all_that_is_left_is_ordered_out(source):
    live, _ = make_live(source, VersionPolicy())
    source.content["a"] = {3: "good"}
    settle(live)
    source.content["a"] = {1: "good"}
    out = Orders(models={"a": ModelOrders(unloaded=frozenset({1}))})
    settle(live, out)
    assert serving(live) == {3}
    settle(live, out.change("a", lambda one: one.unload(3)))
    assert serving(live) == set()
