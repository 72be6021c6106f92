"""What the command line settles once, before the server starts."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qprobe import ProbeFileError
from qprobe.probe.values import is_beta
from qprobe_server.errors import StartupError

if TYPE_CHECKING:  # the first needs torch, which takes seconds
    from qprobe import ProbeInfo
    from qprobe.probe.schedule import Schedule

__all__ = ["ADMIN_KEY_VARIABLE", "Settings", "find_admin_key", "name_probes", "read_settings"]

ADMIN_KEY_VARIABLE = "QPROBE_ADMIN_API_KEY"
_KEEP_ALIVE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The server's own settings; vLLM's stay vLLM's.

    Attributes:
        default_probe: Probe of a request that names none, or None for bare sampling.
        k: Candidates per prompt where the request does not say, or None for the probe's own.
        beta: Temperature of the choice likewise, in units of score, >= 0.
        max_k: The largest k that a request may ask for.
        max_body_mib: The most MiB that a request's body may have, where the edge reads it, >= 1.
        schedule: When candidates are dropped where the request does not say: ``default`` as the
            probe recommends; empty never.
        rejects_early: Whether candidates can be dropped before they are whole.
        keep_alive_s: A reranked stream that is silent for so many seconds gets an SSE comment, > 0.
        allow_model_mismatch: Whether a probe of an adapter's states scores those of others.
        admin_api_key: Opens the routes that change probes; None: there are none.
        json_access_log: One JSON object a request, instead of uvicorn's lines.
        allow_code_execution: Whether requests may have candidates' code run, for votes by it.
        code_workers: Programs that run at a time then, >= 1.
        code_queue: Prompts that vote by code at a time, sampling included, >= 1.
    """

    default_probe: str | None = None
    k: int | None = None
    beta: float | None = None
    max_k: int = 64
    max_body_mib: int = 32
    schedule: 'Schedule | Literal["default"]' = ()
    rejects_early: bool = True
    keep_alive_s: float = 10.0
    allow_model_mismatch: bool = False
    admin_api_key: str | None = field(default=None, repr=False)
    json_access_log: bool = False
    allow_code_execution: bool = False
    code_workers: int = 1
    code_queue: int = 32

    def check(self, names: Sequence[str]) -> None:
        """Check the settings, with each other and with the names of the probes.

        Raises:
            StartupError: One is out of range; the message names the flag and the value.
        """
        if self.max_k < 1:
            raise StartupError(f"--max-k must be at least 1, got {self.max_k}")
        if self.max_body_mib < 1:
            raise StartupError(f"--max-body-mib must be at least 1, got {self.max_body_mib}")
        if self.k is not None and not 1 <= self.k <= self.max_k:
            raise StartupError(f"--k must be from 1 to --max-k ({self.max_k}), got {self.k}")
        if self.beta is not None and not is_beta(self.beta):
            raise StartupError(f"--beta must be a finite number >= 0, got {self.beta}")
        if self.default_probe is not None and self.default_probe not in names:
            loaded = ", ".join(names) or "none"
            raise StartupError(
                f"--default-probe {self.default_probe!r} is not loaded; loaded: {loaded}"
            )

    def check_probe(self, info: "ProbeInfo") -> None:
        """Check what a probe recommends.

        Raises:
            ProbeFileError: Its k is more than a request may ask for, and would be taken.
        """
        if self.k is None and info.k > self.max_k:
            raise ProbeFileError(
                "k",
                f"recommends k={info.k}, more than --max-k {self.max_k}: raise --max-k or set --k",
            )

    def fits_adapter(self, info: "ProbeInfo", adapter: str | None) -> bool:
        """Whether a probe may score the states of an adapter, or of the base model (None).

        One that names no adapter may score any: its maker may not have said.
        """
        return self.allow_model_mismatch or info.adapter in (None, adapter)


def find_admin_key(args: argparse.Namespace) -> str | None:
    """Return the admin key of the flags, or of the environment; an empty one there is none."""
    given: str | None = args.admin_api_key
    return given if given is not None else os.environ.get(ADMIN_KEY_VARIABLE) or None


def read_settings(
    args: argparse.Namespace, *, api_keys: Sequence[str | None] | None = None
) -> Settings:
    """Return our settings from the flags of ``serve``, whichever parser has read them.

    Args:
        args: The flags.
        api_keys: What opens the routes for everyone; None: what vLLM would take.

    Raises:
        StartupError: The admin key is empty, or everyone's.
    """
    admin_key = find_admin_key(args)
    if admin_key is not None:
        if api_keys is None:
            api_keys = args.api_key or [os.environ.get("VLLM_API_KEY")]
        if not admin_key.strip():
            raise StartupError("--admin-api-key must not be empty")
        if admin_key in api_keys:
            raise StartupError("--admin-api-key must differ from --api-key")
    return Settings(
        default_probe=args.default_probe,
        k=args.k,
        beta=args.beta,
        max_k=args.max_k,
        max_body_mib=args.max_body_mib,
        schedule=() if args.schedule is None else args.schedule,
        keep_alive_s=float(args.sse_keep_alive_interval or 0) or _KEEP_ALIVE_S,
        allow_model_mismatch=args.allow_model_mismatch,
        admin_api_key=admin_key,
        json_access_log=args.json_access_log,
        allow_code_execution=args.allow_code_execution,
        code_workers=args.code_workers or max(1, (os.cpu_count() or 1) // 2),
        code_queue=args.code_queue,
    )


def name_probes(given: Sequence[str]) -> dict[str, Path]:
    """Return the files of the ``--probe`` flags by name.

    Raises:
        StartupError: One is not NAME=FILE, or has the name of another.
    """
    files: dict[str, Path] = {}
    for each in given:
        name, equals, path = each.partition("=")
        if not equals or not path:
            raise StartupError(f"--probe {each!r}: must be NAME=FILE")
        if name in files:
            raise StartupError(f"--probe {name!r}: the name is given twice")
        files[name] = Path(path)
    return files
