"""Samples from an API in a thread of its own, beside what the rest of the process does."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, Self, TypeVar

from qprobe_server.commands.api_dialect import REFUSALS, Dialect
from qprobe_server.errors import ServerError, UpstreamError
from qprobe_server.proxy.address import read_address
from qprobe_server.proxy.answers import Format
from qprobe_server.proxy.headers import make_key_header
from qprobe_server.proxy.keys import find_upstream_keys
from qprobe_server.proxy.openai import ChatCompletions, Completions
from qprobe_server.proxy.reader import Written
from qprobe_server.proxy.sampling import Asked, sample
from qprobe_server.proxy.upstream import Bounds, Upstream

__all__ = ["DEADLINE_S", "ApiSampler"]

Body = dict[str, Any]
_Came = tuple[int, Written | ServerError]
_T = TypeVar("_T")

# For one sample, or one batch of embeddings, with all retries: longer than the minutes after which
# most limits of a rate end.
DEADLINE_S = 600.0


class ApiSampler:
    """A context manager; leaving it gives up what is under way.

    Args:
        url: Of an OpenAI-compatible API, as ``--upstream`` has it.
        concurrency: Samples that are asked for at a time, >= 1.
        key_header: Where the key in the environment is put; None: a bearer token.

    Raises:
        StartupError: The URL is none, or the key in the environment is not valid.
    """

    def __init__(self, url: str, *, concurrency: int, key_header: str | None = None) -> None:
        address = read_address("--upstream", url)
        key = find_upstream_keys({None: address}).get(None)
        self._upstream = Upstream(
            address,
            Bounds(concurrency=concurrency),
            key=None if key is None else make_key_header(key, name=key_header),
        )
        self._dialect = Dialect()
        self._turns = asyncio.Semaphore(concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def takes_seeds(self) -> bool:
        """Whether samples have a seed, as far as the API has said."""
        return self._dialect.takes_seeds

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run something on the sampler's event loop, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def begin(self, bodies: Sequence[Body]) -> Iterator[tuple[int, Written | ServerError]]:
        """Begin to sample one completion of each request.

        Args:
            bodies: As the routes take them: of a chat where there are messages, else of a text.

        Returns:
            Gives index and completion of each as they come, or why it cannot be had.
        """
        came: SimpleQueue[_Came | BaseException] = SimpleQueue()
        asyncio.run_coroutine_threadsafe(self._sample_all(bodies, came), self._loop)
        return _listen(came, len(bodies))

    async def _sample_all(
        self, bodies: Sequence[Body], came: SimpleQueue[_Came | BaseException]
    ) -> None:
        async def ask(index: int, body: Body) -> None:
            try:
                came.put((index, await self._sample(body)))
            except ServerError as error:
                came.put((index, error))
            except BaseException as error:  # noqa: BLE001  # raised where it is waited for
                came.put(error)

        await asyncio.gather(*(ask(index, body) for index, body in enumerate(bodies)))

    async def _sample(self, body: Body) -> Written:
        refusal: UpstreamError | None = None
        async with self._turns:  # its time begins when its turn comes
            deadline_s = self._loop.time() + DEADLINE_S
            for changes, form in self._dialect.forms(body):
                try:
                    written = await self._ask(form, deadline_s)
                except UpstreamError as error:
                    if error.status not in REFUSALS:
                        raise
                    refusal = refusal or error
                else:
                    self._dialect.learn(changes)
                    return written
        assert refusal is not None  # there is a form
        raise refusal

    async def _ask(self, body: Body, deadline_s: float) -> Written:
        is_chat = "messages" in body
        route = b"/v1/chat/completions" if is_chat else b"/v1/completions"
        shape: Format = ChatCompletions() if is_chat else Completions()
        asked = Asked(
            upstream=self._upstream,
            format=shape,
            url=self._upstream.address.locate(route, b""),
            headers=self._upstream.headers([]),
            body=body,
        )
        (candidate,) = (await sample(asked, 0, k=1, deadline_s=deadline_s)).candidates
        return candidate.written

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for each in others:
            each.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._upstream.close()


def _listen(came: SimpleQueue[_Came | BaseException], count: int) -> Iterator[_Came]:
    for _ in range(count):
        found = came.get()
        if isinstance(found, BaseException):
            raise found
        yield found
