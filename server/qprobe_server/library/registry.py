"""The probes that a server answers with, by name. In memory only; no files, no engine."""

import hashlib
import re
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qprobe import Probe, ProbeFileError, ProbeInfo, parse_probe
from qprobe_server.library.sums import MAX_ROWS, ServedConfidence, ServedSum, count_rows

__all__ = [
    "LoadedProbe",
    "ProbeRegistry",
    "ServedProbe",
    "WeightedProbes",
    "check_name",
    "read_probe",
]

# Names that an error message lists.
_MAX_SHOWN = 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class LoadedProbe:
    """A probe that was read and checked, under the name that it is to be served by.

    Attributes:
        name: As ``check_name`` allows.
        version: SHA-256 of the file, in hexadecimal.
        created: When it was first given to this server, in seconds since 1970.
        probe: As read.
    """

    name: str
    version: str
    created: int
    probe: Probe


@dataclass(frozen=True, eq=False)
class ServedProbe:
    """One version of a probe, as requests hold it from their first to their last moment.

    Attributes:
        name: What requests call it.
        version: SHA-256 of its file, in hexadecimal.
        created: When it was first given to this server, in seconds since 1970.
        info: Its metadata. The vectors are in the workers.
        score: What its score is the sum of. The workers' indices in this and in the other sums
            belong to this version while anything refers to it.
        confidence: From the score to the expected reward, if it is known.
        heads: What its heads are the sums of, by the checkpoint's number of tokens.
    """

    name: str
    version: str
    created: int
    info: ProbeInfo
    score: ServedSum
    confidence: ServedConfidence | None
    heads: Mapping[int, ServedSum]

    @property
    def sums(self) -> list[ServedSum]:
        """All of them, in the order of ``Probe.sums``."""
        own = self.confidence.own if self.confidence else None
        return [self.score, *([own] if own else []), *self.heads.values()]


WeightedProbes = tuple[tuple[ServedProbe, float], ...]


def check_name(name: str) -> None:
    """Check the name of a probe.

    Raises:
        ProbeFileError: It is not usable; its field is ``name``.
    """
    if not _NAME.fullmatch(name):
        raise ProbeFileError(
            "name",
            "a name is 1 to 64 letters, digits, '.', '_' or '-', and starts with a letter or "
            f"digit, got {name[:80]!r}",
        )


def read_probe(name: str, data: bytes, *, created: int | None = None) -> LoadedProbe:
    """Read a probe that is to be served.

    Args:
        name: What requests will call it.
        data: The bytes of its file.
        created: When it was first given to this server; None: now.

    Raises:
        ProbeFileError: The name is not usable, or the data is not a probe that can be scored.
    """
    check_name(name)
    probe = parse_probe(data)
    num_rows = sum(map(count_rows, probe.sums)) - sum(map(count_rows, probe.heads.values()))
    if num_rows > MAX_ROWS:
        raise ProbeFileError(
            "terms", f"score each token {num_rows} times, more than a request's {MAX_ROWS}"
        )
    version = hashlib.sha256(data).hexdigest()
    return LoadedProbe(name, version, int(time.time()) if created is None else created, probe)


class ProbeRegistry:
    """The probes by name; used from one thread.

    A version that is replaced or removed lives on for the requests that hold it. Its indices are
    given to another one only when the last of them is gone, which Python's own counting of
    references tells: a request may go on after its HTTP reply, as Responses in the background do.
    """

    def __init__(self) -> None:
        self._probes: dict[str, ServedProbe] = {}
        self._num_requests: Counter[str] = Counter()
        self._num_indices = 0
        self._free: list[int] = []
        self._gone: deque[tuple[str, list[int]]] = deque()
        self._listeners: list[Callable[[str], None]] = []

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._probes)

    def reserve(self, loaded: LoadedProbe) -> ServedProbe:
        """Give a probe indices of its own, which are free again once nothing refers to it."""
        self._forget_gone()
        probe = loaded.probe
        sums = [
            ServedSum.of(each, [self._take_index() for _ in range(count_rows(each))])
            for each in probe.sums
        ]
        gone = loaded.name, [row for each in sums for row in each.rows]
        score, *others = sums
        confidence: ServedConfidence | None = None
        if probe.confidence is not None:
            own = None if probe.confidence.terms is None else others.pop(0)
            confidence = ServedConfidence(probe.confidence.calibration, own)
        served = ServedProbe(
            loaded.name,
            loaded.version,
            loaded.created,
            probe.info,
            score,
            confidence,
            dict(zip(probe.heads, others, strict=True)),
        )
        weakref.finalize(served, self._gone.append, gone).atexit = False
        return served

    def when_forgotten(self, listener: Callable[[str], None]) -> None:
        """Call a listener with the name of a probe once it is deleted and no request holds it."""
        self._listeners.append(listener)

    def _forget_gone(self) -> None:
        """Free what finalizers have noted, which run at any moment, under any lock."""
        while self._gone:
            name, indices = self._gone.popleft()
            self._free.extend(indices)
            if name not in self._probes:
                for listener in self._listeners:
                    listener(name)

    def _take_index(self) -> int:
        if self._free:
            return self._free.pop()
        self._num_indices += 1
        return self._num_indices - 1

    def publish(self, probe: ServedProbe) -> None:
        """Answer new requests for its name with this version. The workers know it already."""
        self._probes[probe.name] = probe

    def remove(self, name: str) -> None:
        """Answer no new request for the name.

        Raises:
            KeyError: There is no such probe.
        """
        del self._probes[name]
        del self._num_requests[name]

    def get(self, name: str) -> ServedProbe | None:
        """Return the current version of a probe, or None."""
        self._forget_gone()
        return self._probes.get(name)

    def describe_names(self) -> str:
        """Return the names for an error message: all of a few, else how many there are."""
        names = list(self._probes)
        shown = ", ".join(names[:_MAX_SHOWN]) or "none"
        return shown if len(names) <= _MAX_SHOWN else f"{shown}, and {len(names) - _MAX_SHOWN} more"

    def probes(self) -> Sequence[ServedProbe]:
        """Return the probes in the order of their names' first loading."""
        self._forget_gone()
        return list(self._probes.values())

    def count_request(self, probe: ServedProbe) -> None:
        """Note that a request uses a probe, unless none of that name is served any more."""
        if probe.name in self._probes:
            self._num_requests[probe.name] += 1

    def num_requests(self, name: str) -> int:
        """Return how many requests have used the probe of that name, all its versions together."""
        return self._num_requests[name]
