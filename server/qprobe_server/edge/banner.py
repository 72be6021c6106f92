"""What a server says when it is ready: where it is, what it serves, how to ask it."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from qprobe_server.library.registry import ServedProbe
from qprobe_server.settings import Settings

__all__ = ["Listening", "describe_proxy", "describe_server"]

_PROMPT = "Write a Python function `is_odd(n)`."
_SHOWN_PROBES = 8
# For the name of one of the upstream's, which only itself knows.
_ANY_MODEL = "MODEL"
_NO_ADAPTERS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Listening:
    """Where the server listens, and who may ask.

    Attributes:
        host: Of the flag; None and the addresses of all interfaces mean this machine too.
        port: Of TCP.
        root_path: What a proxy puts before every path.
        is_tls: Whether it speaks HTTPS.
        socket: Path of the Unix socket instead of host and port, or None.
        key: What a shell puts for the API key, never the key itself; None: none is wanted.
    """

    host: str | None
    port: int
    root_path: str = ""
    is_tls: bool = False
    socket: str | None = None
    key: str | None = None

    @property
    def url(self) -> str:
        """The address for a client on this machine."""
        if self.socket is not None:
            return f"http://localhost{self.root_path}"
        host = "localhost" if self.host in (None, "", "0.0.0.0", "::") else str(self.host)
        host = f"[{host}]" if ":" in host else host
        return f"http{'s' if self.is_tls else ''}://{host}:{self.port}{self.root_path}"


def describe_server(
    listening: Listening,
    *,
    model: str,
    is_chat: bool,
    probes: Sequence[ServedProbe],
    settings: Settings,
    adapters: Mapping[str, str] = _NO_ADAPTERS,
) -> str:
    """Return the block that ends a start.

    Args:
        listening: Where.
        model: The name that requests use.
        is_chat: Whether the model has a chat template.
        probes: In the order in which they are listed.
        settings: The server's flags.
        adapters: By the names that they are served by, what LoRA adapters are called to probes.
    """
    names = {model: None, **adapters}
    aliases = {probe: _find_alias(probe, names, settings) for probe in probes}
    rows = _list_addresses(listening)
    rows += _list_probes(listening, aliases, settings)
    if settings.default_probe is not None:
        rows.append((model, f"takes the probe {settings.default_probe}"))
    else:
        rows.append((model, "without a probe is sampled as by vLLM"))
    asked = _pick([probe for probe in probes if aliases[probe]], settings)
    alias = (asked and aliases[asked]) or model
    curl = _make_curl(listening, alias, is_chat=is_chat)
    return _lay_out(f"qprobe serves {model}", rows, "Try:", curl)


def describe_proxy(
    listening: Listening,
    *,
    upstreams: Mapping[str | None, str],
    probes: Sequence[ServedProbe],
    settings: Settings,
) -> str:
    """Return the block that ends a proxy's start.

    Args:
        listening: Where.
        upstreams: Where they are, by the models that they answer for; that of None takes others.
        probes: In the order in which they are listed.
        settings: The server's flags.
    """
    model = next((name for name in upstreams if name is not None), _ANY_MODEL)
    aliases = {probe: f"{model}:{probe.name}" for probe in probes}
    rows = _list_addresses(listening)
    rows += [(name or "upstream", where) for name, where in upstreams.items()]
    rows += _list_probes(listening, aliases, settings)
    if settings.default_probe is not None:
        rows.append(("no probe", f"means the probe {settings.default_probe}"))
    else:
        rows.append(("no probe", "means that a request passes through"))
    asked = _pick(probes, settings)
    curl = _make_curl(listening, aliases[asked] if asked else model, is_chat=True)
    hint = "Try:" if model != _ANY_MODEL else f"Try, with one of its models for {_ANY_MODEL}:"
    return _lay_out("qprobe reranks for these upstreams", rows, hint, curl)


def _list_addresses(listening: Listening) -> list[tuple[str, str]]:
    where = f" on the socket {listening.socket}" if listening.socket else ""
    return [("API", f"{listening.url}/v1{where}"), ("playground", f"{listening.url}/playground")]


def _list_probes(
    listening: Listening, aliases: Mapping[ServedProbe, str | None], settings: Settings
) -> list[tuple[str, str]]:
    """Return the rows of the first probes, by the aliases that they are answered by."""
    rows = [("probe", _describe_probe(probe, alias, settings)) for probe, alias in aliases.items()]
    num_more = len(rows) - _SHOWN_PROBES
    more = [("", f"and {num_more} more: {listening.url}/v1/probes")] if num_more > 0 else []
    return [*rows[:_SHOWN_PROBES], *more]


def _lay_out(said: str, rows: Sequence[tuple[str, str]], hint: str, curl: str) -> str:
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {value}" for name, value in rows]
    return "\n".join(["", f"{said}; Ctrl-C stops it.", *lines, "", hint, "", curl, "", ""])


def _describe_probe(probe: ServedProbe, alias: str | None, settings: Settings) -> str:
    if alias is None:
        return f"{probe.name}  is of the LoRA adapter {probe.info.adapter!r}, which is not served"
    return f"{alias}  {_describe_choice(probe, settings)}"


def _describe_choice(probe: ServedProbe, settings: Settings) -> str:
    """Return what its requests do unless they say otherwise."""
    k = settings.k or probe.info.k
    text = f"best of {k}" if k > 1 else "one candidate"
    wanted = probe.info.schedule if settings.schedule == "default" else settings.schedule
    steps = [step for step in wanted if step.keep < k]
    if not steps or any(step.tokens not in probe.heads for step in wanted):
        return text
    kept = ", ".join(str(step.keep) for step in steps)
    after = ", ".join(str(step.tokens) for step in steps)
    return f"{text}; {kept} are left after {after} tokens (--schedule off: all)"


def _find_alias(
    probe: ServedProbe, names: Mapping[str, str | None], settings: Settings
) -> str | None:
    """Return an alias that is answered; None while the adapter is not there that a probe wants."""
    fit = (name for name, adapter in names.items() if settings.fits_adapter(probe.info, adapter))
    return next((f"{name}:{probe.name}" for name in fit), None)


def _pick(probes: Sequence[ServedProbe], settings: Settings) -> ServedProbe | None:
    """Return the probe that the example asks: the default, else one that answers early."""
    for probe in probes:
        if probe.name == settings.default_probe:
            return probe
    with_schedule = [probe for probe in probes if probe.info.schedule]
    return next(iter([*with_schedule, *probes]), None)


def _make_curl(listening: Listening, model: str, *, is_chat: bool) -> str:
    body: dict[str, object] = {"model": model}
    if is_chat:
        body["messages"] = [{"role": "user", "content": _PROMPT}]
    else:
        body |= {"prompt": _PROMPT, "max_tokens": 64}
    command = ["curl", "-sS"]
    if listening.socket is not None:
        command += ["--unix-socket", listening.socket]
    command.append(f"{listening.url}/v1/{'chat/completions' if is_chat else 'completions'}")
    shown = [shlex.join(command), "-H 'content-type: application/json'"]
    if listening.key is not None:
        shown.append(f'-H "authorization: Bearer {listening.key}"')
    shown.append(f"-d {shlex.quote(json.dumps(body))}")
    return " ".join(shown)
