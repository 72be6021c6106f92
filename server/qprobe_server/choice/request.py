"""From a request's body to what is to be reranked, and how. Knows JSON bodies, no HTTP, no vLLM."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any

from qprobe.probe.schedule import Schedule, Step, check_schedule
from qprobe_server.choice.schemas import QProbeReply, QProbeRequest, ResultReply, read_request, show
from qprobe_server.errors import RequestError
from qprobe_server.library.registry import ProbeRegistry, ServedProbe
from qprobe_server.settings import Settings

__all__ = ["Rerank", "current_rerank", "resolve", "resolve_alias"]

Body = dict[str, Any]

# How often a token may be scored: by each probe and by its head for each checkpoint.
_MAX_ROWS = 64


@dataclass(kw_only=True)
class Rerank:
    """How one HTTP request is reranked, and what came of it.

    Attributes:
        probes: Each with its weight in the candidates' scores; at least one. Held until the request
            is forgotten, so that the versions it began with stay in the workers.
        is_mix: Whether the request named weights.
        k: Candidates per prompt; set to 1 by the engine when the request samples greedily.
        beta: Temperature of the choice, in units of score; None with ``target_kl``.
        target_kl: The KL that the choice may spend, in nats, >= 0; None with ``beta``.
        schedule: When candidates that fall behind are dropped; empty: never.
        return_candidates: Whether the reply shows every candidate.
        return_token_scores: Whether it also shows the score of every token.
        explicit: Whether the request carried a ``q_probe`` object.
        results: One per prompt, by the prompt's index in the request; none for a prompt that the
            engine gave up on.
        notice: Something that the client should know of how the request was read, or None.
    """

    probes: tuple[tuple[ServedProbe, float], ...]
    is_mix: bool = False
    k: int
    beta: float | None = None
    target_kl: float | None = None
    schedule: Schedule = ()
    return_candidates: bool = False
    return_token_scores: bool = False
    explicit: bool = True
    results: dict[int, ResultReply] = field(default_factory=dict)
    notice: str | None = None
    num_prompts: int = 0

    def next_prompt(self) -> int:
        """Return the index of the next prompt of this request, in the order they are started."""
        self.num_prompts += 1
        return self.num_prompts - 1

    def reply(self) -> dict[str, Any]:
        """Return the reply's ``q_probe`` object."""
        (first, _), *_ = self.probes
        names = {probe.name: weight for probe, weight in self.probes}
        versions = {probe.name: probe.version for probe, _ in self.probes}
        given: dict[str, Any] = {
            "beta": self.beta,
            "target_kl": self.target_kl,
            "schedule": [asdict(step) for step in self.schedule] or None,
            "notice": self.notice,
        }
        return QProbeReply(
            probe=names if self.is_mix else first.name,
            version=versions if self.is_mix else first.version,
            k=self.k,
            results=[self.results.get(index) for index in range(self.num_prompts)],
            **{name: value for name, value in given.items() if value is not None},
        ).model_dump(exclude_unset=True)


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

    Precedence: the request, then the server's flags, then the probe's recommendation; of a mix the
    largest that one of its probes recommends.

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
    given = body.pop("q_probe", None)
    asked = read_request({} if given is None else given)
    aliased = resolve_alias(body, registry, is_model)
    probes = _choose_probes(asked, aliased, settings, registry)
    if not probes:
        if given is not None:
            raise RequestError(
                "q_probe.probe: the request names no probe and the server has no default; "
                f"loaded: {registry.describe_names()}",
                param="q_probe.probe",
            )
        return None
    if asked.beta is not None and asked.target_kl is not None:
        raise RequestError(
            "q_probe.target_kl: takes the place of beta, which is given too",
            param="q_probe.target_kl",
        )
    k = _choose_k(body, asked, probes, settings, reads_best_of=reads_best_of)
    if body.get("use_beam_search"):
        raise RequestError(
            "use_beam_search: beam search cannot be reranked by a probe", param="use_beam_search"
        )
    n = body.get("n")
    if isinstance(n, int) and n > k:
        raise RequestError(f"n: {n} answers cannot be drawn from k={k} candidates", param="n")
    schedule, notice = _choose_schedule(asked, probes, settings)
    for probe, _ in probes:
        registry.count_request(probe)
    return Rerank(
        probes=probes,
        is_mix=isinstance(asked.probe, dict),
        k=k,
        beta=None if asked.target_kl is not None else _choose_beta(asked, probes, settings),
        target_kl=asked.target_kl,
        schedule=schedule,
        notice=notice,
        return_candidates=bool(asked.return_candidates or asked.return_token_scores),
        return_token_scores=bool(asked.return_token_scores),
        explicit=given is not None,
    )


_Probes = tuple[tuple[ServedProbe, float], ...]


def _choose_probes(
    asked: QProbeRequest,
    aliased: ServedProbe | None,
    settings: Settings,
    registry: ProbeRegistry,
) -> _Probes:
    """Return the probes with their weights; none if the request is not to be reranked."""
    if isinstance(asked.probe, dict):
        return _choose_mix(asked.probe, aliased, registry)
    if asked.probe is not None:
        probe = _find(registry, asked.probe, param="q_probe.probe")
        if aliased is not None and aliased is not probe:
            raise _contradict(asked.probe, aliased)
        return ((probe, 1.0),)
    if aliased is not None:
        return ((aliased, 1.0),)
    if settings.default_probe is not None:
        return ((_find(registry, settings.default_probe, param="q_probe.probe"), 1.0),)
    return ()


def _choose_mix(
    mix: dict[str, float], aliased: ServedProbe | None, registry: ProbeRegistry
) -> _Probes:
    if aliased is not None:
        raise _contradict(mix, aliased)
    if not any(mix.values()):
        raise RequestError(
            f"q_probe.probe: a weight must be other than 0, got {show(mix)}", param="q_probe.probe"
        )
    return tuple(
        (_find(registry, name, param="q_probe.probe"), weight) for name, weight in mix.items()
    )


def _contradict(asked: object, aliased: ServedProbe) -> RequestError:
    return RequestError(
        f"q_probe.probe: is {show(asked)}, but the model's alias names {aliased.name!r}",
        param="q_probe.probe",
    )


def _find(registry: ProbeRegistry, name: str, *, param: str) -> ServedProbe:
    probe = registry.get(name)
    if probe is None:
        raise RequestError(
            f"{param}: the probe {show(name)} does not exist; loaded: {registry.describe_names()}",
            param=param,
            status=404,
        )
    return probe


def _choose_k(
    body: Body, asked: QProbeRequest, probes: _Probes, settings: Settings, *, reads_best_of: bool
) -> int:
    best_of = body.pop("best_of", None) if reads_best_of else None
    for name, value in (("q_probe.k", asked.k), ("best_of", best_of)):
        if value is not None and not _is_count(value, settings.max_k):
            raise RequestError(
                f"{name}: must be an integer from 1 to {settings.max_k}, got {show(value)}",
                param=name,
            )
    if asked.k is not None and best_of is not None and asked.k != best_of:
        raise RequestError(f"best_of: is {best_of}, but q_probe.k is {asked.k}", param="best_of")
    for value in (asked.k, best_of, settings.k):
        if value is not None:
            return int(value)
    return max(probe.info.k for probe, _ in probes)


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _choose_beta(asked: QProbeRequest, probes: _Probes, settings: Settings) -> float:
    for value in (asked.beta, settings.beta):
        if value is not None:
            return float(value)
    return float(max(probe.info.beta for probe, _ in probes))


def _choose_schedule(
    asked: QProbeRequest, probes: _Probes, settings: Settings
) -> tuple[Schedule, str | None]:
    """Return the schedule, and a notice if the server's cannot be followed.

    Raises:
        RequestError: The request's own is not valid, or its probes have no heads for it.
    """
    if asked.schedule is not None:
        return _read_schedule(asked, probes), None
    if settings.schedule == "default":
        # A mix has none of its own, and many a probe recommends none: nothing to tell.
        wanted = probes[0][0].info.schedule if len(probes) == 1 else ()
    else:
        wanted = settings.schedule
    if not wanted:
        return (), None
    if asked.target_kl is not None:
        return (), "no candidate is dropped early: target_kl holds for all of them only"
    obstacle = _find_obstacle(wanted, probes)
    if obstacle is not None:
        return (), f"no candidate is dropped early: {obstacle[1]}"
    return wanted, None


def _read_schedule(asked: QProbeRequest, probes: _Probes) -> Schedule:
    param = "q_probe.schedule"
    if asked.schedule == "off" or asked.schedule == []:
        return ()
    if asked.target_kl is not None:
        raise RequestError(
            f"{param}: cannot go with target_kl, which holds for draws from all candidates only",
            param=param,
        )
    if asked.schedule == "default":
        steps = probes[0][0].info.schedule
        if len(probes) > 1 or not steps:
            named = "a mix" if len(probes) > 1 else f"the probe {probes[0][0].name!r}"
            raise RequestError(
                f"{param}: is 'default', but {named} recommends none: give a list", param=param
            )
        return steps
    assert isinstance(asked.schedule, list)
    steps = tuple(Step(each.tokens, each.keep) for each in asked.schedule)
    try:
        check_schedule(steps)
    except ValueError as error:
        place, said = error.args
        raise RequestError(f"{param}.{place}: {said}", param=f"{param}.{place}") from error
    obstacle = _find_obstacle(steps, probes)
    if obstacle is not None:
        place = f"{param}{obstacle[0]}"
        raise RequestError(f"{place}: {obstacle[1]}", param=place)
    return steps


def _find_obstacle(steps: Schedule, probes: _Probes) -> tuple[str, str] | None:
    """Return why probes cannot follow a schedule: the field below it, and the reason."""
    for index, step in enumerate(steps):
        for probe, _ in probes:
            if step.tokens not in probe.heads:
                there = ", ".join(map(str, probe.heads)) or "none"
                return f".{index}.tokens", (
                    f"the probe {probe.name!r} has no head for {step.tokens} tokens; "
                    f"it has: {there}"
                )
    num_rows = len(probes) * (1 + len(steps))
    if num_rows > _MAX_ROWS:
        return "", (
            f"{len(probes)} probes and {len(steps)} checkpoints score each token {num_rows} times, "
            f"more than {_MAX_ROWS}"
        )
    return None
