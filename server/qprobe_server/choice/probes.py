"""Which probes a request asks for, and how much each counts."""

import math

from qprobe_server.choice.schemas import QProbeRequest, show
from qprobe_server.errors import RequestError
from qprobe_server.library.registry import ProbeRegistry, ServedProbe, WeightedProbes
from qprobe_server.library.sums import MAX_ROWS
from qprobe_server.settings import Settings

__all__ = ["choose_probes", "find_probe", "in_units"]


def choose_probes(
    asked: QProbeRequest,
    aliased: ServedProbe | None,
    settings: Settings,
    registry: ProbeRegistry,
) -> WeightedProbes:
    """Return the probes with their weights; none if the request is not to be reranked.

    Raises:
        RequestError: 404, there is no such probe; 400, the request contradicts its model's alias,
            or asks for a mix that cannot be.
    """
    if isinstance(asked.probe, dict):
        return _choose_mix(asked.probe, aliased, registry)
    if asked.probe is not None:
        probe = find_probe(registry, asked.probe, param="q_probe.probe")
        if aliased is not None and aliased is not probe:
            raise _contradict(asked.probe, aliased)
        return ((probe, 1.0),)
    if aliased is not None:
        return ((aliased, 1.0),)
    if settings.default_probe is not None:
        return ((find_probe(registry, settings.default_probe, param="q_probe.probe"), 1.0),)
    return ()


def _choose_mix(
    mix: dict[str, float], aliased: ServedProbe | None, registry: ProbeRegistry
) -> WeightedProbes:
    if aliased is not None:
        raise _contradict(mix, aliased)
    if not any(mix.values()):
        raise RequestError(
            f"q_probe.probe: a weight must be other than 0, got {show(mix)}", param="q_probe.probe"
        )
    probes = tuple(
        (find_probe(registry, name, param="q_probe.probe"), weight) for name, weight in mix.items()
    )
    num_rows = sum(len(probe.score.rows) for probe, _ in probes)
    if num_rows > MAX_ROWS:
        raise RequestError(
            f"q_probe.probe: {len(probes)} probes score each token {num_rows} times, more than "
            f"{MAX_ROWS}",
            param="q_probe.probe",
        )
    return probes


def in_units(probes: WeightedProbes) -> WeightedProbes:
    """Weigh probes so that their sum varies about as one of them does, as a vote needs it.

    Its classes weigh exp(score), and each probe's scores have a standard deviation of 1. That of a
    sum is the root of the squared weights' sum, of probes that have nothing to do with each other.
    """
    unit = math.hypot(*(weight for _, weight in probes))
    return tuple((probe, weight / unit) for probe, weight in probes)


def _contradict(asked: object, aliased: ServedProbe) -> RequestError:
    return RequestError(
        f"q_probe.probe: is {show(asked)}, but the model's alias names {aliased.name!r}",
        param="q_probe.probe",
    )


def find_probe(registry: ProbeRegistry, name: str, *, param: str) -> ServedProbe:
    """Return a loaded probe.

    Raises:
        RequestError: 404; there is none of this name. ``param`` has asked for it.
    """
    probe = registry.get(name)
    if probe is None:
        raise RequestError(
            f"{param}: the probe {show(name)} does not exist; loaded: {registry.describe_names()}",
            param=param,
            status=404,
        )
    return probe
