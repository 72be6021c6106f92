"""Tables of preferences, of answers that another model reads, and of what training costs."""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from markdown import Table, tell_difference, tell_mean
from numpy.typing import NDArray
from study import Judged, Study, pair_up
from ways import BETA, BOTH, BOTH_BT, CE, PG, STATES, choose_reading

from qprobe.evaluation.expectation import expected_rewards
from qprobe.evaluation.scoring import score
from qprobe.probe.file import save_probe
from qprobe.training.recipe import train
from qprobe.training.settings import TrainingSettings

__all__ = ["find_wins", "tell_api", "tell_cost", "tell_preferences"]

Floats = NDArray[np.float64]
_PREFERENCES = (STATES["bt"], CE, PG, BOTH_BT, BOTH)
_READ = {
    "read": "states of another model that reads",
    "embedded": "an embeddings endpoint",
}


def find_wins(rewards: Floats, groups: NDArray[np.int64], rivals: list[Floats]) -> Floats:
    """Return how often each sample earns more than one of its prompt's rivals, ties half.

    Args:
        rewards: Shape (samples,).
        groups: Shape (samples,): the prompt of each.
        rivals: The rewards of each prompt's.

    Returns:
        Shape (samples,), from 0 to 1.
    """
    pairs = zip(rewards, groups, strict=True)
    won = [
        np.mean((reward > rivals[group]) + 0.5 * (reward == rivals[group]))
        for reward, group in pairs
    ]
    return np.array(won, dtype=np.float64)


def tell_preferences(study: Study) -> str:
    """Win rates over one zero-shot sample, on the test problems."""
    test = study.on_test
    table = Table("choice", "wins, ties half", "above one half", "reward")
    for name, judged, wins, rewards in _list_winners(study, test):
        half = np.full(len(wins), 0.5)
        cells = tell_mean(judged.bootstrap, wins), tell_difference(judged.bootstrap, wins, half)
        table.add(name, *cells, tell_mean(judged.bootstrap, rewards))
    return (
        f"{len(study.test)} problems, k = {test.k}: how often what is chosen earns more than one "
        f"zero-shot sample of the same problem.\n\n{table}"
    )


def _list_winners(study: Study, test: Judged) -> Iterator[tuple[str, Judged, Floats, Floats]]:
    """Yield names, on whom, what share is won and what is earned: (prompts,) each."""
    probes = study.probes("mbpp")
    sets = {"zero-shot": (test, test)}
    tuned = study.find("mbpp-dpo")
    if tuned is not None:
        beside, judged = pair_up(test.dataset, tuned, study.k)
        sets["LoRA DPO"] = judged, beside
    for way, (judged, beside) in sets.items():
        dataset = judged.dataset
        groups = beside.dataset.groups
        rivals = [beside.dataset.rewards[groups == each] for each in range(groups[-1] + 1)]
        won = find_wins(dataset.rewards, dataset.groups, rivals)
        prompts = np.arange(len(rivals))
        yield f"{way}, one sample", judged, _earn(judged, won, won, 0, k=1), judged.base
        greedy = find_wins(judged.greedy, prompts, rivals)
        greedy[np.isnan(judged.greedy)] = np.nan
        yield f"{way}, greedy", judged, greedy, judged.greedy
        for each in _PREFERENCES:
            if each in probes:
                scores = score(probes[each], dataset)
                wins = _earn(judged, scores, won, BETA, k=judged.k)
                yield f"{way}, {each}", judged, wins, judged.choose(scores)
        best = _earn(judged, dataset.rewards, won, 0, k=judged.k)
        yield f"{way}, ceiling", judged, best, judged.ceiling()


def _earn(judged: Judged, scores: Floats, worth: Floats, beta: float, *, k: int) -> Floats:
    return expected_rewards(scores, worth, judged.dataset.groups, k=k, beta=beta)


def tell_api(study: Study, benchmark: str) -> str | None:
    """The model's answers read by others, each problem held out; beside its own states."""
    parts = []
    for end, reader in _READ.items():
        dataset = study.find(f"{benchmark}-{end}")
        own = study.mbpp if benchmark == "mbpp" else study.find(benchmark)
        if dataset is None or own is None:
            continue
        beside, judged = pair_up(own, dataset, study.k)
        table = Table("read by", "reward", "minus one sample", "minus the model's own states, ce")
        found: dict[str, Floats] = {"one sample": beside.base, "greedy": beside.greedy}
        for name, each in (("its own states", beside), (reader, judged)):
            scores = study.score_held_out(each.dataset, [CE, PG])
            found |= {f"{name}, {way.objective}": each.choose(scores[way]) for way in scores}
        reference = found.get("its own states, ce", np.full(len(judged.base), np.nan))
        for name, values in found.items():
            over = (
                ""
                if name == "one sample"
                else tell_difference(judged.bootstrap, values, beside.base)
            )
            own_over = (
                "" if values is reference else tell_difference(judged.bootstrap, values, reference)
            )
            table.add(name, tell_mean(judged.bootstrap, values), over, own_over)
        parts.append(f"{reader}: {len(judged.base)} problems, k = {judged.k}.\n\n{table}")
    return "\n\n".join(parts) or None


def tell_cost(study: Study) -> str:
    """Seconds and bytes of a probe, and of the adapters that tune.py made."""
    known = study.mbpp.subset(study.train)
    reading = choose_reading(known, study.candidates(known))
    table = Table("what", "trained on", "seconds", "CPU seconds", "kilobytes", "machine")
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    probe = train(known, reading, TrainingSettings(objective="ce"), test_fraction=0)
    spent = f"{time.monotonic() - began_s:.1f}", f"{time.process_time() - began_cpu_s:.1f}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.safetensors"
        save_probe(probe, path)
        size = path.stat().st_size
    about = f"{len(study.train)} problems, {len(known.samples)} samples"
    table.add(f"probe: {reading} and five numbers, ce", about, *spent, f"{size / 1e3:,.0f}", "here")
    for path in sorted(study.folder.glob("*/training.json")):
        told = json.loads(path.read_text("utf-8"))
        weights = path.with_name("adapter_model.safetensors").stat().st_size
        about = f"{told['num_prompts']} problems, {told['num_rows']} rows x {told['epochs']}"
        seconds = [f"{told[name]:,.0f}" for name in ("seconds", "cpu_seconds")]
        name = f"LoRA {path.parent.name}"
        table.add(name, about, *seconds, f"{weights / 1e3:,.0f}", told["machine"])
    return str(table)
