"""The model repository extension of the Open Inference Protocol: index, load and unload.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Never

from service.classifier import Classifier
from service.errors import ErrorCode, RequestError
from service.rollout import Rollout

_STATES: Final = {"loading": "LOADING", "draining": "UNLOADING", "failed": "UNAVAILABLE"}

Parameters = Mapping[str, object]


class ModelRepository:
    """What the routes and rpcs of the extension do. They are for administrators."""

    def __init__(self, classifier: Classifier, rollout: Rollout) -> None:
        self._classifier = classifier
        self._rollout = rollout

    async def index(self, *, ready_only: bool) -> list[dict[str, Any]]:
        """Returns every version that is in the repository or serves, with its state.

        Raises:
            RequestError: `model_load_failed`: the repository cannot be listed.
        """
        listing = await self._rollout.list_repository()
        states = {
            (name, version): ("UNAVAILABLE", "it is not loaded")
            for name, versions in listing.items()
            for version in versions
        }
        for one in self._classifier.describe_unavailable():
            states[one.name, one.version] = (_STATES[one.state], one.reason or "")
        for model in self._classifier.describe_models():
            states[model.name, model.version] = ("READY", "")
        return [
            {"name": name, "version": str(version), "state": state, "reason": reason}
            for (name, version), (state, reason) in sorted(states.items())
            if state == "READY" or not ready_only
        ]

    async def load(self, name: str, parameters: Parameters) -> None:
        """Serves what the version policy chooses, changed versions anew.

        Raises:
            RequestError: `invalid_argument` for a model or a configuration in the request itself;
                otherwise as `Rollout.load`.
        """
        if parameters:
            _refuse("a model is loaded as its bundle in the repository is: leave parameters out")
        await self._rollout.load(name, None)

    async def unload(self, name: str, parameters: Parameters) -> None:
        """Serves no version of a model any more.

        Raises:
            RequestError: `invalid_argument` when others should be unloaded too; otherwise as
                `Rollout.unload`.
        """
        if parameters.keys() - {"unload_dependents"}:
            _refuse("unload_dependents is the only parameter")
        if parameters.get("unload_dependents", False) is not False:
            _refuse("unload_dependents is not offered: unload each model by its name")
        await self._rollout.unload(name, None)


def _refuse(detail: str) -> Never:
    raise RequestError(ErrorCode.INVALID_ARGUMENT, detail)
