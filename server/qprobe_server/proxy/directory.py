"""Which upstream answers for a model."""

from collections.abc import Mapping, Sequence

from qprobe_server.library.registry import ProbeRegistry
from qprobe_server.proxy.upstream import Upstream

__all__ = ["Directory"]


class Directory:
    """The upstreams by the models that they answer for.

    Args:
        upstreams: By the model's name, at least one; that of None takes all other models.
        probes: A name before which a colon stands, as in Ollama's ``MODEL:TAG``, is a model's own
            unless it is the name of one of these.
    """

    def __init__(self, upstreams: Mapping[str | None, Upstream], probes: ProbeRegistry) -> None:
        self._upstreams = upstreams
        self._probes = probes
        self._first = next(iter(upstreams.values()))

    def __len__(self) -> int:
        """Return the number of upstreams."""
        return len(self._upstreams)

    @property
    def names(self) -> Sequence[str]:
        """The models that have an upstream of their own."""
        return [name for name in self._upstreams if name is not None]

    @property
    def is_open(self) -> bool:
        """Whether an upstream takes models that nobody here knows."""
        return None in self._upstreams

    def is_model(self, name: str) -> bool:
        """Return whether a name is a model's, and not an alias or nobody's."""
        if name in self._upstreams:
            return True
        _, colon, last = name.rpartition(":")
        is_alias = bool(colon) and self._probes.get(last) is not None
        return self.is_open and bool(name) and not is_alias

    def pick(self, model: object) -> Upstream:
        """Return the upstream of a model; the first for what names none."""
        if isinstance(model, str) and model in self._upstreams:
            return self._upstreams[model]
        return self._upstreams.get(None, self._first)
