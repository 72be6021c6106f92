"""What the command line settles once, before the server starts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from qprobe import ProbeFileError, ProbeInfo
from qprobe.probe.network import is_beta
from qprobe.probe.schedule import Schedule
from qprobe_server.errors import StartupError

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The server's own settings; vLLM's stay vLLM's.

    Attributes:
        default_probe: Probe of a request that names none, or None for bare sampling.
        k: Candidates per prompt where the request does not say, or None for the probe's own.
        beta: Temperature of the choice likewise, in units of score, >= 0.
        max_k: The largest k that a request may ask for.
        schedule: When candidates are dropped where the request does not say: ``default`` as the
            probe recommends; empty never.
        keep_alive_s: A reranked stream that is silent for so many seconds gets an SSE comment, > 0.
        admin_api_key: Opens the routes that change probes; None: there are none.
        json_access_log: One JSON object a request, instead of uvicorn's lines.
    """

    default_probe: str | None = None
    k: int | None = None
    beta: float | None = None
    max_k: int = 64
    schedule: Schedule | Literal["default"] = ()
    keep_alive_s: float = 10.0
    admin_api_key: str | None = field(default=None, repr=False)
    json_access_log: bool = False

    def check(self, names: Sequence[str]) -> None:
        """Check the settings, with each other and with the names of the probes.

        Raises:
            StartupError: One is out of range; the message names the flag and the value.
        """
        if self.max_k < 1:
            raise StartupError(f"--max-k must be at least 1, got {self.max_k}")
        if self.k is not None and not 1 <= self.k <= self.max_k:
            raise StartupError(f"--k must be from 1 to --max-k ({self.max_k}), got {self.k}")
        if self.beta is not None and not is_beta(self.beta):
            raise StartupError(f"--beta must be a finite number >= 0, got {self.beta}")
        if self.default_probe is not None and self.default_probe not in names:
            loaded = ", ".join(names) or "none"
            raise StartupError(
                f"--default-probe {self.default_probe!r} is not loaded; loaded: {loaded}"
            )

    def check_probe(self, info: ProbeInfo) -> None:
        """Check what a probe recommends.

        Raises:
            ProbeFileError: Its k is more than a request may ask for, and would be taken.
        """
        if self.k is None and info.k > self.max_k:
            raise ProbeFileError(
                "k",
                f"recommends k={info.k}, more than --max-k {self.max_k}: raise --max-k or set --k",
            )
