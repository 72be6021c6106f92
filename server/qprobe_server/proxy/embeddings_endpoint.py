"""A client of OpenAI's ``/v1/embeddings``, whoever serves it. Knows no probes.

Neither texts nor keys nor what the endpoint says get into errors.
"""

import asyncio
import base64
import binascii
import json
from collections.abc import Sequence
from functools import partial

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from qprobe_server.errors import ReadingError, UpstreamError
from qprobe_server.proxy.address import Address
from qprobe_server.proxy.headers import make_key_header
from qprobe_server.proxy.upstream import Bounds, Upstream

__all__ = ["EmbeddingsEndpoint", "NoneTakenError", "shorten"]

Floats = NDArray[np.float32]

# For the first question, also where batches have longer: a wrong port should not take so long.
_PROBE_S = 60.0
_BOUNDS = Bounds(max_reply_mib=64, concurrency=32)
# How many texts that were refused together are tried alone at a time.
_MAX_ALONE = 8
# It will not take this text, or not so many or so much at once.
_REFUSED = (400, 413, 422)
# Of all texts, each alone, these tell of the request or the model rather than of long texts.
_NOT_OF_LENGTH = (400, 422)


class _RefusedError(Exception):
    """The endpoint does not take the texts.

    Attributes:
        status: Its, from 400 to 499.
    """

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status


class NoneTakenError(ReadingError):
    """The endpoint takes none of the texts, each of which it was asked for alone."""


class EmbeddingsEndpoint:
    """Asks for the embeddings of a batch at a time; again, where that may help and there is time.

    Args:
        address: Of the API.
        model: As the endpoint calls it.
        api_key: Its key; None sends none.
        key_header: Where that is put; None: a bearer token.
        total_s: For a batch with all its tries and pauses, > 0.

    Raises:
        StartupError: The key has a character that no key can have.

    Attributes:
        address, model: As given.
    """

    def __init__(
        self,
        address: Address,
        *,
        model: str,
        api_key: str | None = None,
        key_header: str | None = None,
        total_s: float = 60.0,
    ) -> None:
        self.address = address
        self.model = model
        self._total_s = total_s
        key = None if api_key is None else make_key_header(api_key, name=key_header)
        self._upstream = Upstream(address, _BOUNDS, key=key)

    async def close(self) -> None:
        """Close the connections."""
        await self._upstream.close()

    async def probe(self) -> int:
        """Ask for one embedding, within a minute; return how many dimensions it has.

        Raises:
            ReadingError: The endpoint gives none, or says that another model made it.
        """
        try:
            (vector,) = await self._embed_together(["ok"], total_s=min(self._total_s, _PROBE_S))
        except _RefusedError as error:
            said = f"it does not take the model {self.model!r}, or a text at all"
            raise self._fail(f"status {error.status}: {said}") from error
        return int(vector.size)

    async def embed(self, texts: Sequence[str]) -> list[Floats | None]:
        """Return the embeddings of texts, each of shape (dimensions,); all are asked for at once.

        Args:
            texts: At least one, none of them empty.

        Returns:
            None for a text that the endpoint does not take, such as one that is too long. It
            refuses all for one, so that each is then asked for alone.

        Raises:
            NoneTakenError: It takes none of the texts, and does not say that their size is why.
            ReadingError: The endpoint gives no embeddings.
        """
        try:
            return [*await self._embed_together(texts)]
        except _RefusedError as error:
            found = [error] if len(texts) == 1 else await self._embed_alone(texts)
        statuses = [each.status for each in found if isinstance(each, _RefusedError)]
        if len(statuses) == len(texts) and all(each in _NOT_OF_LENGTH for each in statuses):
            raise NoneTakenError(self._say(f"status {statuses[0]}: it takes none of the texts"))
        return [None if isinstance(each, _RefusedError) else each for each in found]

    async def _embed_alone(self, texts: Sequence[str]) -> list[Floats | _RefusedError]:
        """Ask for each text alone; return what is refused as the error."""
        places = asyncio.Semaphore(_MAX_ALONE)

        async def embed(text: str) -> Floats | _RefusedError:
            async with places:
                try:
                    vector: Floats = (await self._embed_together([text]))[0]
                except _RefusedError as error:
                    return error
                return vector

        tasks = [asyncio.create_task(embed(text)) for text in texts]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for each in tasks:
                each.cancel()

    async def _embed_together(
        self, texts: Sequence[str], *, total_s: float | None = None
    ) -> Floats:
        """Return (texts, dimensions)."""
        # Floats: what every server knows. Those that send base64 all the same are understood.
        body = {"model": self.model, "input": list(texts), "encoding_format": "float"}
        headers = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
        make = partial(
            httpx.Request,
            "POST",
            self.address.locate(b"/v1/embeddings", b""),
            headers=self._upstream.headers(headers),
            content=json.dumps(body).encode(),
        )
        deadline_s = asyncio.get_running_loop().time() + (total_s or self._total_s)
        try:
            reply = await self._upstream.ask(make, deadline_s=deadline_s)
        except UpstreamError as error:
            if error.status in _REFUSED:
                raise _RefusedError(error.status) from error
            raise self._fail(str(error)) from error
        return self._parse(reply.body, len(texts))

    def _parse(self, data: bytes, count: int) -> Floats:
        try:
            reply = from_json(data)  # numbers by the thousand: six times as fast as json's
        except ValueError:
            raise self._fail("a reply that is not JSON") from None
        found = reply.get("data") if isinstance(reply, dict) else None
        if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
            raise self._fail('a reply without a list of objects "data"')
        self._check_model(reply.get("model"))
        indices = [each.get("index") for each in found]
        if sorted(indices, key=str) != sorted(range(count), key=str):
            raise self._fail(f"{len(found)} embeddings, or of others, where {count} were asked for")
        rows = [self._read_vector(each.get("embedding")) for each in found]
        if len({row.size for row in rows}) != 1:
            raise self._fail("embeddings of different dimensions")
        return np.stack([rows[indices.index(index)] for index in range(count)])

    def _check_model(self, name: object) -> None:
        """Check who has embedded: the name may lack the owner's, or add a version's."""
        if isinstance(name, str) and not shorten(name).startswith(shorten(self.model)):
            raise self._fail(f"{self.model!r} was asked, and {name[:80]!r} has answered")

    def _read_vector(self, value: object) -> Floats:
        try:
            if isinstance(value, str):
                vector = np.frombuffer(base64.b64decode(value, validate=True), "<f4")
            else:
                vector = np.asarray(value, np.float32)
        except (TypeError, ValueError, binascii.Error):
            raise self._fail("an embedding that is no list of numbers") from None
        if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
            raise self._fail("an embedding that is no list of finite numbers")
        return vector

    def _fail(self, what: str) -> ReadingError:
        return ReadingError(self._say(what))

    def _say(self, what: str) -> str:
        return f"the embeddings endpoint {self.address.origin}: {what}"


def shorten(name: str) -> str:
    """Return a model's name as it is compared: without the owner's, in lower case."""
    return name.rsplit("/", 1)[-1].lower()
