"""What the command line settles once, before the server starts."""

from dataclasses import dataclass

from qprobe.probe import is_beta
from qprobe_server.errors import StartupError
from qprobe_server.registry import ProbeRegistry

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The server's own settings; vLLM's stay vLLM's.

    Attributes:
        default_probe: Probe of a request that names none, or None for bare sampling.
        k: Candidates per prompt where the request does not say, or None for the probe's own.
        beta: Temperature of the choice likewise, in units of score, >= 0.
        max_k: The largest k that a request may ask for.
        keep_alive_s: A reranked stream that is silent for so many seconds gets an SSE comment, > 0.
    """

    default_probe: str | None
    k: int | None
    beta: float | None
    max_k: int
    keep_alive_s: float

    def check(self, registry: ProbeRegistry) -> None:
        """Check the settings, with each other and with the loaded probes.

        Raises:
            StartupError: One is out of range; the message names the flag and the value.
        """
        if self.max_k < 1:
            raise StartupError(f"--max-k must be at least 1, got {self.max_k}")
        if self.k is not None and not 1 <= self.k <= self.max_k:
            raise StartupError(f"--k must be from 1 to --max-k ({self.max_k}), got {self.k}")
        if self.beta is not None and not is_beta(self.beta):
            raise StartupError(f"--beta must be a finite number >= 0, got {self.beta}")
        if self.default_probe is not None and registry.get(self.default_probe) is None:
            loaded = ", ".join(registry.names()) or "none"
            raise StartupError(
                f"--default-probe {self.default_probe!r} is not loaded; loaded: {loaded}"
            )
        for served in registry.probes():
            recommended = served.probe.info.k
            if self.k is None and recommended > self.max_k:
                raise StartupError(
                    f"probe {served.name!r} recommends k={recommended}, more than --max-k "
                    f"{self.max_k}: raise --max-k or set --k"
                )
