"""From a request's body to what is to be reranked, and how. Knows JSON bodies, no HTTP, no vLLM."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from qprobe.probe import is_beta
from qprobe_server.errors import RequestError
from qprobe_server.registry import ProbeRegistry, ServedProbe
from qprobe_server.settings import Settings

__all__ = ["Rerank", "current_rerank", "resolve", "resolve_alias"]

Body = dict[str, Any]

# Characters of a value that an error message repeats.
_SHOWN = 60
_FIELDS = ("probe", "k", "beta", "return_candidates")


@dataclass(kw_only=True)
class Rerank:
    """How one HTTP request is reranked, and what came of it.

    Attributes:
        probe: Scores the candidates.
        k: Candidates per prompt; set to 1 by the engine when the request samples greedily.
        beta: Temperature of the choice, in units of score.
        return_candidates: Whether the reply shows every candidate.
        explicit: Whether the request carried a ``q_probe`` object.
        results: One reply object per prompt, by the prompt's index in the request; none for a
            prompt that the engine gave up on.
        notice: Something that the client should know of how the request was read, or None.
    """

    probe: ServedProbe
    k: int
    beta: float
    return_candidates: bool
    explicit: bool
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    notice: str | None = None
    num_prompts: int = 0

    def next_prompt(self) -> int:
        """Return the index of the next prompt of this request, in the order they are started."""
        self.num_prompts += 1
        return self.num_prompts - 1

    def reply(self) -> dict[str, Any]:
        """Return the reply's ``q_probe`` object."""
        reply: dict[str, Any] = {"probe": self.probe.name, "k": self.k, "beta": self.beta}
        if self.notice is not None:
            reply["notice"] = self.notice
        reply["results"] = [self.results.get(index) for index in range(self.num_prompts)]
        return reply


# Set around a request by the middleware; the engine reads it in the same task context.
current_rerank: ContextVar[Rerank | None] = ContextVar("current_rerank", default=None)


def resolve_alias(
    body: Body, registry: ProbeRegistry, is_model: Callable[[str], bool]
) -> ServedProbe | None:
    """Replace a model alias ``<model>:<probe>`` in the body by the model; return the probe.

    A name that is itself a model is never an alias.

    Raises:
        RequestError: 404, the model is known and the probe is not.
    """
    model = body.get("model")
    if not isinstance(model, str) or is_model(model):
        return None
    base, colon, name = model.rpartition(":")
    if not colon or not is_model(base):
        return None
    probe = _find(registry, name, param="model")
    body["model"] = base
    return probe


def resolve(
    body: Body,
    *,
    settings: Settings,
    registry: ProbeRegistry,
    is_model: Callable[[str], bool],
    reads_best_of: bool,
) -> Rerank | None:
    """Settle how a request is reranked, and take what is ours out of its body.

    Precedence: the request, then the server's flags, then the probe's recommendation.

    Args:
        body: The request. Loses ``q_probe``, and ``best_of`` where a probe reads it; an alias in
            ``model`` becomes the model.
        settings: The server's flags.
        registry: The loaded probes.
        is_model: Whether a name is a base model or a LoRA adapter that is served.
        reads_best_of: Whether ``best_of`` means k here, as in OpenAI's completions.

    Returns:
        None if the request is to be sampled as vLLM does.

    Raises:
        RequestError: 400 or 404; names the field.
    """
    asked = _read_fields(body)
    aliased = resolve_alias(body, registry, is_model)
    probe = _choose_probe(asked, aliased, settings, registry)
    if probe is None:
        if asked is not None:
            loaded = ", ".join(registry.names()) or "none"
            raise RequestError(
                "q_probe.probe: the request names no probe and the server has no default; "
                f"loaded: {loaded}",
                param="q_probe.probe",
            )
        return None
    fields = asked or {}
    k = _choose_k(body, fields, probe, settings, reads_best_of=reads_best_of)
    beta = _choose_beta(fields, probe, settings)
    return_candidates = fields.get("return_candidates", False)
    if not isinstance(return_candidates, bool):
        raise _refuse("return_candidates", "true or false", return_candidates)
    if body.get("use_beam_search"):
        raise RequestError(
            "use_beam_search: beam search cannot be reranked by a probe", param="use_beam_search"
        )
    n = body.get("n")
    if isinstance(n, int) and n > k:
        raise RequestError(f"n: {n} answers cannot be drawn from k={k} candidates", param="n")
    return Rerank(
        probe=probe,
        k=k,
        beta=beta,
        return_candidates=return_candidates,
        explicit=asked is not None,
    )


def _read_fields(body: Body) -> Body | None:
    asked = body.pop("q_probe", None)
    if asked is None:
        return None
    if not isinstance(asked, dict):
        raise RequestError(f"q_probe: must be an object, got {_show(asked)}", param="q_probe")
    for name in asked:
        if name not in _FIELDS:
            allowed = ", ".join(_FIELDS)
            path = f"q_probe.{name[:_SHOWN]}"
            raise RequestError(f"{path}: is not a field; the fields are {allowed}", param=path)
    return {name: value for name, value in asked.items() if value is not None}


def _choose_probe(
    asked: Body | None, aliased: ServedProbe | None, settings: Settings, registry: ProbeRegistry
) -> ServedProbe | None:
    name = (asked or {}).get("probe")
    if name is not None:
        if not isinstance(name, str):
            raise _refuse("probe", "a probe's name", name)
        probe = _find(registry, name, param="q_probe.probe")
        if aliased is not None and aliased is not probe:
            raise RequestError(
                f"q_probe.probe: is {_show(name)}, but the model's alias names {aliased.name!r}",
                param="q_probe.probe",
            )
        return probe
    if aliased is not None:
        return aliased
    if settings.default_probe is not None:
        return _find(registry, settings.default_probe, param="q_probe.probe")
    return None


def _find(registry: ProbeRegistry, name: str, *, param: str) -> ServedProbe:
    probe = registry.get(name)
    if probe is None:
        loaded = ", ".join(registry.names()) or "none"
        raise RequestError(
            f"{param}: the probe {_show(name)} does not exist; loaded: {loaded}",
            param=param,
            status=404,
        )
    return probe


def _choose_k(
    body: Body, fields: Body, probe: ServedProbe, settings: Settings, *, reads_best_of: bool
) -> int:
    best_of = body.pop("best_of", None) if reads_best_of else None
    k = fields.get("k")
    for name, value in (("q_probe.k", k), ("best_of", best_of)):
        if value is not None and not _is_count(value, settings.max_k):
            raise RequestError(
                f"{name}: must be an integer from 1 to {settings.max_k}, got {_show(value)}",
                param=name,
            )
    if k is not None and best_of is not None and k != best_of:
        raise RequestError(f"best_of: is {best_of}, but q_probe.k is {k}", param="best_of")
    for value in (k, best_of, settings.k):
        if value is not None:
            return int(value)
    return probe.probe.info.k


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _choose_beta(fields: Body, probe: ServedProbe, settings: Settings) -> float:
    beta = fields.get("beta")
    if beta is None:
        return float(probe.probe.info.beta if settings.beta is None else settings.beta)
    if not is_beta(beta):
        raise _refuse("beta", "a finite number >= 0", beta)
    return float(beta)


def _refuse(name: str, expected: str, value: object) -> RequestError:
    path = f"q_probe.{name}"
    return RequestError(f"{path}: must be {expected}, got {_show(value)}", param=path)


def _show(value: object) -> str:
    """Return a value of the request for an error message, cut short: it may be a misplaced text."""
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
