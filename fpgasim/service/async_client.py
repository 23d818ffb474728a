"""`AsyncPredictionClient`: the twin of `PredictionClient` for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Self

import grpc
import grpc.aio

from fpgasim.service import calls
from fpgasim.service.calls import ARRAYS_TIMEOUT_S, TIMEOUT_S, Picture, Reply, Wanted
from fpgasim.service.client import service_arguments
from fpgasim.service.servables import IMAGES

__all__ = ["AsyncPredictionClient", "async_client_from_service"]


class AsyncPredictionClient(calls.Caller):
    """As `PredictionClient`, with methods to await; for the event loop in which it is first used.

    It is closed by `await close()` or an `async with` statement.
    """

    async def predict(
        self, inputs: Mapping[str, Any], outputs: Wanted = None, timeout: float = ARRAYS_TIMEOUT_S
    ) -> Reply:
        """The Reply to arrays by name: all its outputs by name, or those asked for, and what the server says of it."""
        return await self._call(calls.predict_request(inputs, outputs), timeout)

    async def score_file(
        self, path: Picture, input_name: str = IMAGES, outputs: Wanted = None, timeout: float = TIMEOUT_S
    ) -> Any:
        """The score of one picture (a path, bytes or an open file), without a batch axis; in a list they keep it."""
        inputs = await asyncio.to_thread(calls.picture_input, path, input_name)
        return calls.unbatched(calls.chosen(await self.predict(inputs, outputs, timeout), outputs))

    async def score_image(self, path: Picture, timeout: float = TIMEOUT_S) -> Any:
        """The score of one picture, without a batch axis."""
        return await self.score_file(path, timeout=timeout)

    async def score_numpy_array(self, npdata: Any, timeout: float = ARRAYS_TIMEOUT_S) -> Any:
        """The scores of a batch, sent as float32; with its batch axis."""
        return calls.chosen(await self.predict(calls.images_input(npdata), None, timeout), None)

    async def score_numpy_arrays(
        self, input_map: Mapping[str, Any], outputs: Wanted = None, timeout: float = ARRAYS_TIMEOUT_S
    ) -> Any:
        """The scores of arrays by name, in their own dtypes; with their batch axes."""
        return calls.chosen(await self.predict(input_map, outputs, timeout), outputs)

    async def score_tensors(
        self,
        input_map: Mapping[str, tuple[Any, Sequence[int], Any]],
        outputs: Wanted = None,
        timeout: float = TIMEOUT_S,
    ) -> Any:
        """The scores of tensors by name, each (bytes, shape, datatype); see `PredictionClient.score_tensors`."""
        return calls.chosen(await self.predict(calls.tensors_input(input_map), outputs, timeout), outputs)

    async def score_tensor(self, data: Any, shape: Sequence[int], datatype: Any, timeout: float = TIMEOUT_S) -> Any:
        """The scores of one tensor as a TensorProto; see `PredictionClient.score_tensor`."""
        return calls.only_tensor(await self.predict(calls.images_tensor(data, shape, datatype), None, timeout))

    async def close(self) -> None:
        """Ends the connection; calls that are on their way fail."""
        if self._channel is not None:
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, request: Any, timeout: float) -> Reply:
        if self._channel is None:  # now there is an event loop
            self._channel = self._line.channel(grpc.aio)
            self._predict = self._line.predict(self._channel)
        attempts = calls.Attempts(self._line, timeout)
        while True:
            try:
                call = self._predict(request, timeout=attempts.left_s(), metadata=self._line.metadata)
                response = await call
                return calls.reply(response, await call.initial_metadata(), await call.trailing_metadata())
            except grpc.RpcError as error:
                pause = attempts.failed(error)
            await asyncio.sleep(pause)


def async_client_from_service(service: Any) -> AsyncPredictionClient:
    """As `client_from_service`, for asyncio."""
    return AsyncPredictionClient(**service_arguments(service))
