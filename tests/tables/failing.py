"""Classifiers that fail in ways which nobody foresaw, and say where they live."""

from __future__ import annotations

from types import SimpleNamespace

SECRET = f"cannot open {__file__}"


class Failing:
    """Fails whatever it is asked."""

    rollout = trials = SimpleNamespace()  # the routes of both exist

    def __getattr__(self, name):
        raise OSError(SECRET)


class Babbling(Failing):
    """Answers with what are no answers."""

    is_ready, is_draining, is_stuck = object(), False, False

    def refuse_early(self, options):
        pass

    async def classify(self, image, options):
        return object()

    explain = classify

    async def classify_many(self, images, options):
        return [object() for _ in images]

    def describe_models(self):
        return [object()]

    describe_model = describe_unavailable = describe_trials = describe_models
