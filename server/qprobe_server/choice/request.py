"""From a request's body to what is to be reranked, and how. Knows JSON bodies, no HTTP, no vLLM."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from qprobe.probe.schedule import Schedule
from qprobe_server.choice.fields import check_names, count_prompts, read_lax
from qprobe_server.choice.probes import choose_probes, find_probe, in_units
from qprobe_server.choice.schedule import choose_schedule
from qprobe_server.choice.schemas import QProbeRequest, read_request, show
from qprobe_server.choice.vote import Vote, VoteReader
from qprobe_server.errors import RequestError
from qprobe_server.library.registry import ProbeRegistry, ServedProbe, WeightedProbes
from qprobe_server.library.sums import ServedConfidence
from qprobe_server.settings import Settings

__all__ = ["RerankRequest", "resolve", "resolve_alias", "split_alias"]

Body = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RerankRequest:
    """How one HTTP request is to be reranked.

    Attributes:
        probes: Each with its weight in the candidates' scores; at least one. Held until the request
            is forgotten, so that the versions it began with stay in the workers. With a vote the
            weights' squares add up to 1.
        is_mix: Whether the request named weights.
        k: Candidates per prompt.
        beta: Temperature of the choice, in units of score; None with ``target_kl``.
        target_kl: The KL that the choice may spend, in nats, >= 0; None with ``beta``.
        schedule: When candidates that fall behind are dropped; empty: never.
        vote: How candidates with equal answers support each other, or None.
        return_candidates: Whether the reply shows every candidate.
        return_token_scores: Whether it also shows the score of every token.
        explicit: Whether the request carried a ``q_probe`` object.
        notice: Something that the client should know of how the request was read, or None.
        temperature: That candidates are sampled with, or None where the request does not say.
    """

    probes: WeightedProbes
    is_mix: bool = False
    k: int
    beta: float | None = None
    target_kl: float | None = None
    schedule: Schedule = ()
    vote: Vote | None = None
    return_candidates: bool = False
    return_token_scores: bool = False
    explicit: bool = True
    notice: str | None = None
    temperature: float | None = None

    @property
    def confidence(self) -> ServedConfidence | None:
        """Its probe's; a mix's score says nothing of how sure one of its probes is."""
        return None if self.is_mix else self.probes[0][0].confidence


def split_alias(model: object, is_model: Callable[[str], bool]) -> tuple[str, str] | None:
    """Return the model and the probe that a name ``<model>:<probe>`` stands for.

    Returns:
        None if it is no alias; a name that is itself a model never is.
    """
    if not isinstance(model, str) or is_model(model):
        return None
    base, colon, name = model.rpartition(":")
    return (base, name) if colon and is_model(base) else None


def resolve_alias(
    body: Body, registry: ProbeRegistry, is_model: Callable[[str], bool]
) -> ServedProbe | None:
    """Replace a model alias in the body by the model; return the probe, None if it is no alias.

    Raises:
        RequestError: 404, the model is known and the probe is not.
    """
    alias = split_alias(body.get("model"), is_model)
    if alias is None:
        return None
    base, name = alias
    probe = find_probe(registry, name, param="model")
    body["model"] = base
    return probe


def resolve(
    body: Body,
    *,
    settings: Settings,
    registry: ProbeRegistry,
    votes: VoteReader,
    is_model: Callable[[str], bool],
    list_adapters: Callable[[], Mapping[str, str]],
    reads_best_of: bool,
) -> RerankRequest | None:
    """Settle how a request is reranked, and take what is ours out of its body.

    Precedence: the request, then the server's flags, then the probe's recommendation; of a mix the
    largest that one of its probes recommends.

    Args:
        body: The request. Loses ``q_probe``, and ``best_of`` where a probe reads it; an alias in
            ``model`` becomes the model.
        settings: The server's flags.
        registry: The loaded probes.
        votes: Reads ``q_probe.vote``.
        is_model: Whether a name is a base model or a LoRA adapter that is served.
        list_adapters: Returns, by the names of the adapters among them, what each is called to
            probes.
        reads_best_of: Whether ``best_of`` means k here, as in OpenAI's completions.

    Returns:
        None if the request is to be sampled as vLLM does.

    Raises:
        RequestError: 400 or 404; names the field.
    """
    check_names(body)
    given = body.pop("q_probe", None)
    asked = read_request({} if given is None else given)
    aliased = resolve_alias(body, registry, is_model)
    probes = choose_probes(asked, aliased, settings, registry)
    if not probes:
        if given is not None:
            raise RequestError(
                "q_probe.probe: the request names no probe and the server has no default; "
                f"loaded: {registry.describe_names()}",
                param="q_probe.probe",
            )
        return None
    _check_together(body, asked)
    _check_adapter(body.get("model"), probes, settings, list_adapters)
    k = _choose_k(body, asked, probes, settings, reads_best_of=reads_best_of)
    schedule, notice = choose_schedule(asked, probes, settings)
    vote = None
    if asked.vote is not None:
        probes = in_units(probes)
        field, num_prompts = count_prompts(body)
        vote = votes.read(asked.vote, num_prompts=num_prompts, field=field)
    return RerankRequest(
        probes=probes,
        is_mix=isinstance(asked.probe, dict),
        k=k,
        beta=None if asked.target_kl is not None else _choose_beta(asked, probes, settings),
        target_kl=asked.target_kl,
        schedule=schedule,
        vote=vote,
        notice=notice,
        return_candidates=bool(asked.return_candidates or asked.return_token_scores),
        return_token_scores=bool(asked.return_token_scores),
        explicit=given is not None,
        temperature=read_lax(body.get("temperature"), float),
    )


def _check_together(body: Body, asked: QProbeRequest) -> None:
    """Check what goes with what."""
    if asked.beta is not None and asked.target_kl is not None:
        raise RequestError(
            "q_probe.target_kl: takes the place of beta, which is given too",
            param="q_probe.target_kl",
        )
    if asked.vote is not None and asked.target_kl is not None:
        raise RequestError(
            "q_probe.target_kl: cannot go with vote, which draws classes: give beta",
            param="q_probe.target_kl",
        )
    if read_lax(body.get("use_beam_search"), bool):
        raise RequestError(
            "use_beam_search: beam search cannot be reranked by a probe", param="use_beam_search"
        )


def _check_adapter(
    model: object,
    probes: WeightedProbes,
    settings: Settings,
    list_adapters: Callable[[], Mapping[str, str]],
) -> None:
    """Check that a probe which was trained on the states of an adapter is asked with it."""
    if all(probe.info.adapter is None for probe, _ in probes):
        return
    adapters = list_adapters()
    mine = adapters.get(model) if isinstance(model, str) else None
    for probe, _ in probes:
        if settings.fits_adapter(probe.info, mine):
            continue
        wanted = probe.info.adapter
        names = [repr(name) for name, adapter in adapters.items() if adapter == wanted]
        where = f"served as {' or '.join(names)}" if names else "which is not served"
        asked = "the base model" if mine is None else f"the adapter {show(mine)}"
        raise RequestError(
            f"model: is {asked}, but the probe {probe.name!r} was trained on the LoRA adapter "
            f"{show(wanted)}, {where}; --allow-model-mismatch lets it score others",
            param="model",
        )


def _choose_k(
    body: Body,
    asked: QProbeRequest,
    probes: WeightedProbes,
    settings: Settings,
    *,
    reads_best_of: bool,
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
    recommended = max(probe.info.k for probe, _ in probes)
    given = (asked.k, best_of, settings.k)
    k = int(next((value for value in given if value is not None), recommended))
    n = read_lax(body.get("n"), int)
    if n is not None and n > k:
        if best_of is not None:
            raise RequestError(f"best_of: must be at least n, {n}, got {k}", param="best_of")
        raise RequestError(f"n: {n} answers cannot be drawn from k={k} candidates", param="n")
    return k


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _choose_beta(asked: QProbeRequest, probes: WeightedProbes, settings: Settings) -> float:
    for value in (asked.beta, settings.beta):
        if value is not None:
            return float(value)
    return float(max(probe.info.beta for probe, _ in probes))
