"""The rpcs of the model repository extension, for holders of a key with the scope `admin` alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.json_format import ParseDict

from service.grpc_call import Call
from service.grpc_infer import read_parameters
from service.open_inference_repository import ModelRepository
from service.proto import open_inference_pb2 as messages


class GrpcRepository:
    """Index, load and unload, as Triton answers them."""

    def __init__(self, repository: ModelRepository) -> None:
        self._repository = repository

    def answers(self) -> dict[str, Callable[[Any, Call], Awaitable[Any]]]:
        """Returns what answers each of the rpcs."""
        return {
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }

    async def _index(
        self, request: messages.RepositoryIndexRequest, _call: Call
    ) -> messages.RepositoryIndexResponse:
        models = await self._repository.index(ready_only=request.ready)
        return ParseDict({"models": models}, messages.RepositoryIndexResponse())

    async def _load(
        self, request: messages.RepositoryModelLoadRequest, _call: Call
    ) -> messages.RepositoryModelLoadResponse:
        await self._repository.load(request.model_name, read_parameters(request.parameters))
        return messages.RepositoryModelLoadResponse()

    async def _unload(
        self, request: messages.RepositoryModelUnloadRequest, _call: Call
    ) -> messages.RepositoryModelUnloadResponse:
        await self._repository.unload(request.model_name, read_parameters(request.parameters))
        return messages.RepositoryModelUnloadResponse()
