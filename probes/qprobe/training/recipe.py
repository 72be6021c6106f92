"""The recipe that makes a servable probe of a dataset: split, training, heads and provenance."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np

from qprobe.data.dataset import Dataset
from qprobe.data.provenance import SEEN, note_seen
from qprobe.data.split import split_prompts
from qprobe.errors import ProbeFileError, TrainingError
from qprobe.evaluation.expectation import expected_rewards
from qprobe.probe.probe import Endpoint, Probe, ProbeInfo
from qprobe.probe.reading import Reading
from qprobe.probe.terms import Terms
from qprobe.training.confidence import choose_own_settings, find_confidence
from qprobe.training.design import Design, has_logprobs, pose, settle_numbers
from qprobe.training.fit import FittedProbe, TrainingSettings, fit_inputs
from qprobe.training.gate import Gate
from qprobe.training.judgement import judge_held_out

__all__ = ["DEFAULT_K", "make_probe", "read_settings", "train"]

DEFAULT_K = 16
DEFAULT_SETTINGS = TrainingSettings()


def train(
    dataset: Dataset,
    readings: Reading | Sequence[Reading],
    settings: TrainingSettings = DEFAULT_SETTINGS,
    *,
    numbers: Sequence[str] | None = None,
    gates: Sequence[str] = (),
    k: int | None = None,
    test_fraction: float | None = None,
    licence: str | None = None,
    checkpoints: Sequence[int] = (),
    progress: Callable[[int], object] = lambda total: None,
) -> Probe:
    """Train a probe on a dataset, less the prompts that are set aside; ``evaluate`` takes those.

    Args:
        dataset: Loaded whole.
        readings: Stored in it; of several the score is the sum. Of pooling ``max`` it needs the
            states of single tokens. There may be none if there are numbers or gates.
        settings: Of the training; the seed also of the split.
        numbers: Of ``NUMBERS``, which the score reads too. None takes all of them if the dataset
            knows the log-probabilities and its model has sampled every answer, and else none.
        gates: Each as LAYER/END,END,...: the score also hears segments of the completion, as far as
            a gate lets it. Needs ``LAYER/mean`` and the means of the first END tokens. Or as LAYER:
            every token by itself; needs the states of single tokens.
        k: How many candidates the probe will recommend, from 1 to the fewest samples of a prompt;
            None takes 16, or these if they are fewer. The training does not depend on it.
        test_fraction: Of the prompts, 0 <= test_fraction < 1; None as in ``split_prompts``.
        licence: SPDX expression for the weights.
        checkpoints: Numbers of tokens. The probe gets a head for each, trained in the same way on
            the means over the first so many tokens of the same layers, and on the same numbers of
            these tokens if the dataset knows them; else ``training.notes`` says that it does not.
        progress: Called after each weight decay of each fit, and each fit, with the number of all.

    Raises:
        QProbeError: The dataset cannot be split or trained on, lacks what is read, or k is too
            much.
    """
    k = dataset.settle_k(k, default=DEFAULT_K)
    known = dataset
    if test_fraction != 0:
        kept, _ = split_prompts(
            dataset.prompts,
            test_fraction=test_fraction,
            seed=settings.seed,
            places=dataset.places,
        )
        known = dataset.subset(kept)
    given = (readings,) if isinstance(readings, Reading) else tuple(readings)
    design = Design(given, settle_numbers(known, numbers), tuple(map(Gate.parse, gates)))
    heads, notes = _design_heads(design, known, checkpoints)
    for each in (design, *heads.values()):
        each.require(known)

    num_fits = 1 + len(heads) + (choose_own_settings(known, settings) is not None)
    total = num_fits * (len(settings.decays) + 1)

    def advance() -> None:
        progress(total)

    return make_probe(
        known,
        design,
        settings,
        k=k,
        licence=licence,
        heads=_fit_heads(heads, known, settings, advance),
        notes=notes,
        progress=advance,
    )


def _design_heads(
    design: Design, dataset: Dataset, checkpoints: Sequence[int]
) -> tuple[dict[int, Design], list[str]]:
    """Return the terms of each head, and in words what they lack."""
    heads = {tokens: design.begin(tokens) for tokens in sorted({*checkpoints})}
    known = not design.numbers or has_logprobs(dataset, tokens=list(heads))
    if known or not (design.readings or design.gates):  # numbers alone: the dataset says so
        return heads, []
    note = (
        "the heads read states only: the dataset does not hold the log-probability of every "
        "token, which newer ones do"
    )
    return {tokens: replace(head, numbers=()) for tokens, head in heads.items()}, [note]


def _fit_heads(
    heads: Mapping[int, Design],
    known: Dataset,
    settings: TrainingSettings,
    progress: Callable[[], object],
) -> dict[int, Terms]:
    problem = pose(known, settings)
    fitted = {}
    for tokens, head in heads.items():
        try:
            inputs = head.prepare(known, problem.order, tokens=tokens)
            fitted[tokens] = head.to_terms(fit_inputs(problem, inputs, progress=progress))
        except TrainingError as error:
            raise TrainingError(
                "checkpoints", f"the head of {tokens} tokens cannot be trained: {error}"
            ) from error
    return fitted


def make_probe(
    known: Dataset,
    design: Design,
    settings: TrainingSettings,
    *,
    k: int,
    licence: str | None,
    heads: Mapping[int, Terms] | None = None,
    notes: Sequence[str] = (),
    progress: Callable[[], object] = lambda: None,
) -> Probe:
    """Train a probe with its confidence, and say where it comes from.

    Args:
        known: What it is trained on.
        design: What the score is the sum of.
        settings: How.
        k: How many candidates it recommends.
        licence: SPDX expression for the weights.
        heads: For each checkpoint.
        notes: What one must know to believe it, besides what the fit says.
        progress: Called after each weight decay of each fit, and each fit.
    """
    problem = pose(known, settings)
    inputs = design.prepare(known, problem.order)
    fitted = fit_inputs(problem, inputs, progress=progress)
    confidence, reason = find_confidence(
        known, design.to_terms, inputs, fitted, settings, progress=progress
    )
    terms = design.to_terms(fitted)
    every = (*fitted.notes, *notes, *([reason] if reason else []))
    manifest = known.manifest
    info = ProbeInfo(
        base_model=manifest["model"],
        hidden_size=manifest["hidden_size"],
        num_layers=manifest["num_layers"],
        objective=settings.objective,
        k=k,
        beta=settings.beta,
        training={
            **_describe(known, settings, fitted, k=k),
            "cross_validated": judge_held_out(terms, fitted.held_out_rewards, known),
            "notes": list(every),
        },
        licence=licence,
        checkpoints=tuple(heads or ()),
        adapter=(manifest.get("adapter") or {}).get("name"),
        endpoint=_read_endpoint(manifest),
    )
    return Probe(info, terms, heads, confidence)


def _describe(
    known: Dataset, settings: TrainingSettings, fitted: FittedProbe, *, k: int
) -> dict[str, Any]:
    """Return what the header says of the training on a dataset of these prompts."""
    manifest, rewards, groups = known.manifest, known.rewards, known.groups
    return {
        "dataset": known.digest,
        "adapter": manifest.get("adapter"),
        "shots": manifest.get("shots"),
        "prompts": manifest.get("prompts"),
        "reward": manifest.get("reward"),
        "sampling": manifest.get("sampling"),
        "upstream": manifest.get("upstream"),
        "train_prompts": len(known.prompts),
        "train_samples": len(groups),
        "train_base": float(expected_rewards(rewards, rewards, groups, k=1, beta=0).mean()),
        "cross_validated_reward": float(fitted.held_out_rewards.mean()),
        "weight_decay": fitted.weight_decay,
        "weight_decays": list(settings.weight_decays),
        "per_prompt": settings.per_prompt,
        "scale": fitted.scale,
        "seed": settings.seed,
        "k": k,
        "beta": settings.beta,
        "folds": settings.num_folds,
        "qprobe": version("qprobe"),
        SEEN: note_seen([known.prompts[i] for i in np.unique(groups)]),
    }


def _read_endpoint(manifest: Mapping[str, Any]) -> Endpoint | None:
    """Return how the embeddings endpoint has read whose embeddings a dataset has."""
    found = manifest.get("endpoint")
    return None if found is None else Endpoint(**found)


def read_settings(info: ProbeInfo) -> TrainingSettings:
    """Return the settings that ``train`` has made a probe with.

    Raises:
        ProbeFileError: It does not say one of them.
        TrainingError: One is out of range.
    """
    training = info.training
    for name in ("weight_decays", "folds", "seed"):
        if name not in training:
            raise ProbeFileError(
                f"training.{name}", "is missing, so that the probe cannot be trained anew"
            )
    return TrainingSettings(
        objective=info.objective,
        beta=training.get("beta", info.beta),  # the header's own may be that of a schedule
        per_prompt=training.get("per_prompt", False),  # which older versions did not know
        weight_decays=tuple(training["weight_decays"]),
        num_folds=training["folds"],
        seed=training["seed"],
    )
