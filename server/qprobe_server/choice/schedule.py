"""Which schedule of early rejection a request follows."""

from qprobe.probe.schedule import Schedule, Step, check_schedule
from qprobe_server.choice.schemas import QProbeRequest
from qprobe_server.errors import RequestError
from qprobe_server.library.registry import WeightedProbes
from qprobe_server.library.sums import MAX_ROWS
from qprobe_server.settings import Settings

__all__ = ["choose_schedule", "list_steps"]


def choose_schedule(
    asked: QProbeRequest, probes: WeightedProbes, settings: Settings
) -> tuple[Schedule, str | None]:
    """Return the schedule, and a notice if the server's cannot be followed.

    Raises:
        RequestError: The request's own is not valid, or its probes have no heads for it.
    """
    if asked.schedule is not None:
        return _read_schedule(asked, probes, settings), None
    if settings.schedule == "default":
        # A mix has none of its own, and many a probe recommends none: nothing to tell.
        wanted = probes[0][0].info.schedule if len(probes) == 1 else ()
    else:
        wanted = settings.schedule
    if not wanted:
        return (), None
    if asked.target_kl is not None:
        return (), "no candidate is dropped early: target_kl holds for all of them only"
    if asked.vote is not None:
        return (), "no candidate is dropped early: all of them vote"
    obstacle = _find_obstacle(wanted, probes)
    if obstacle is not None:
        return (), f"no candidate is dropped early: {obstacle[1]}"
    return wanted, None


def list_steps(schedule: Schedule, *, k: int, n: int) -> list[Step]:
    """Return the steps at which one of k candidates leaves; n answers take n candidates."""
    steps = []
    num_left = k
    for step in schedule:
        keep = max(step.keep, n)
        if keep < num_left:
            steps.append(Step(step.tokens, keep))
            num_left = keep
    return steps


def _read_schedule(asked: QProbeRequest, probes: WeightedProbes, settings: Settings) -> Schedule:
    param = "q_probe.schedule"
    if asked.schedule == "off" or asked.schedule == []:
        return ()
    if not settings.rejects_early:
        raise RequestError(
            f"{param}: this server reads candidates once they are written, and drops none early",
            param=param,
        )
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


def _find_obstacle(steps: Schedule, probes: WeightedProbes) -> tuple[str, str] | None:
    """Return why probes cannot follow a schedule: the field below it, and the reason."""
    for index, step in enumerate(steps):
        for probe, _ in probes:
            if step.tokens not in probe.heads:
                there = ", ".join(map(str, probe.heads)) or "none"
                return f".{index}.tokens", (
                    f"the probe {probe.name!r} has no head for {step.tokens} tokens; "
                    f"it has: {there}"
                )
    sums = [probe.score for probe, _ in probes]
    sums += [probe.heads[step.tokens] for probe, _ in probes for step in steps]
    confidence = probes[0][0].confidence
    if len(probes) == 1 and confidence is not None and confidence.own is not None:
        sums.append(confidence.own)  # a mix tells no confidence
    num_rows = sum(len(each.rows) for each in sums)
    if num_rows > MAX_ROWS:
        return "", (
            f"{len(probes)} probes and {len(steps)} checkpoints score each token {num_rows} times, "
            f"more than {MAX_ROWS}"
        )
    return None
