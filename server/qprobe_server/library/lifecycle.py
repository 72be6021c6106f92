"""Probes come and go while the server runs."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from qprobe import Probe, ProbeFileError
from qprobe_server.errors import RequestError, StartupError
from qprobe_server.library.registry import LoadedProbe, ProbeRegistry, ServedProbe, read_probe
from qprobe_server.library.store import ProbeStore

__all__ = ["ProbeLifecycle", "check_probes"]


def check_probes(probes: Sequence[LoadedProbe], check: Callable[[Probe], None]) -> None:
    """Check the probes that a server starts with.

    Args:
        probes: All of them.
        check: Raises ProbeFileError for a probe that this server cannot score.

    Raises:
        StartupError: It cannot score one; its name is told.
    """
    for each in probes:
        try:
            check(each.probe)
        except ProbeFileError as error:
            raise StartupError(f"probe {each.name!r}: {error}") from error


class ProbeLifecycle:
    """Puts probes into workers, disk and registry, one change at a time.

    Args:
        registry: Changed last: a probe is in the workers and on the disk when requests find it.
        load: Gives the workers probes under the indices reserved for them.
        check: Raises ProbeFileError for a probe that this server cannot score.
        store: Where uploads are kept; None keeps them until the server stops.
        default_probe: The name that requests rely on, if there is one: never deleted.
    """

    def __init__(
        self,
        registry: ProbeRegistry,
        *,
        load: Callable[[Sequence[tuple[ServedProbe, Probe]]], Awaitable[None]],
        check: Callable[[Probe], None],
        store: ProbeStore | None,
        default_probe: str | None,
    ) -> None:
        self._registry = registry
        self._load = load
        self._check = check
        self._store = store
        self._default_probe = default_probe
        self._changing = asyncio.Lock()

    async def start(self, probes: Sequence[LoadedProbe]) -> None:
        """Serve the probes that the server starts with; of two of one name the last."""
        latest = {each.name: each for each in probes}.values()
        served = [self._registry.reserve(each) for each in latest]
        await self._load([(one, each.probe) for one, each in zip(served, latest, strict=True)])
        for one in served:
            self._registry.publish(one)

    async def put(self, name: str, data: bytes) -> tuple[ServedProbe, bool]:
        """Serve a probe by a name, new or instead of its present version.

        Returns:
            The probe, and whether the name is new.

        Raises:
            RequestError: 400, the name or the data is not valid; nothing has changed.
            OSError: The probe cannot be written to the disk; nothing has changed.
        """
        try:
            loaded = read_probe(name, data)
            self._check(loaded.probe)
        except ProbeFileError as error:
            raise RequestError(str(error), param=error.field) from error
        # A client that leaves must not leave the disk and the registry apart.
        return await asyncio.shield(self._replace(loaded, data))

    async def _replace(self, loaded: LoadedProbe, data: bytes) -> tuple[ServedProbe, bool]:
        async with self._changing:
            former = self._registry.get(loaded.name)
            if former is not None and former.version == loaded.version:
                if self._store is not None:  # it may be served as a file of --probe
                    kept = replace(loaded, created=former.created)
                    await asyncio.to_thread(self._store.save, kept, data)
                return former, False
            served = self._registry.reserve(loaded)
            await self._load([(served, loaded.probe)])
            if self._store is not None:
                await asyncio.to_thread(self._store.save, loaded, data)
            self._registry.publish(served)
        return served, former is None

    async def delete(self, name: str) -> None:
        """Serve a probe no more. Requests that have begun with it end with it.

        Raises:
            RequestError: 404, there is none; 409, the server's default cannot be deleted.
            OSError: It cannot be removed from the disk; it is still served.
        """
        await asyncio.shield(self._remove(name))

    async def _remove(self, name: str) -> None:
        async with self._changing:
            if self._registry.get(name) is None:
                raise RequestError(
                    f"name: the probe {name[:80]!r} does not exist", param="name", status=404
                )
            if name == self._default_probe:
                raise RequestError(
                    f"name: {name!r} is the server's --default-probe", param="name", status=409
                )
            if self._store is not None:
                await asyncio.to_thread(self._store.delete, name)
            self._registry.remove(name)
