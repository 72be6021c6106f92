"""Makes a dataset: samples prompts on the engine, rewards the answers meanwhile, writes shards.

Knows nothing of vLLM but ``SamplingEngine``; the folder's format is ``qprobe.data.dataset``'s.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING

import torch

from qprobe.data.dataset import GREEDY, Reading, Sample
from qprobe.data.prompts import PromptRow
from qprobe.data.writer import DatasetWriter
from qprobe.errors import RewardError
from qprobe.rewards import Reward
from qprobe_server.commands.manifest import SEED_STRIDE

if TYPE_CHECKING:  # it imports vLLM, which takes seconds
    from qprobe_server.vllm_backend.sampling import Completion, SamplingEngine, SamplingParameters

__all__ = ["collect_given", "collect_samples", "readings_of"]

# vLLM's CPU worker binds this process to cores of its own; rewards may use all that it began with.
_CORES = os.sched_getaffinity(0)

Progress = Callable[[int], object]


@dataclass(frozen=True)
class _Asked:
    """What a request to the engine was for."""

    prompt: int
    index: int
    seed: int | None
    reward: float | None = None  # known beforehand


def readings_of(engine: "SamplingEngine") -> list[Reading]:
    """Return the readings in the order in which the engine gives embeddings."""
    readings = []
    for layer in engine.layers:
        readings.append(Reading(layer, "last"))
        readings.append(Reading(layer, "mean"))
        readings += [Reading(layer, "mean", window) for window in engine.windows]
    return readings


def collect_samples(
    engine: "SamplingEngine",
    writer: DatasetWriter,
    rows: list[PromptRow],
    prompts: list[list[int]],
    reward: Reward,
    *,
    params: "SamplingParameters",
    n: int,
    seed: int,
    greedy: bool,
    reward_workers: int,
    progress: Progress,
) -> None:
    """Write the shards that are missing, by sampling.

    Each shard is sampled in one go by an idle engine with an empty prefix cache, so that it comes
    out the same whether or not the collection was interrupted before it.

    Args:
        engine: Idle.
        writer: Of the dataset.
        rows: Of all prompts of the dataset.
        prompts: Their tokens, from the engine.
        reward: Called in threads, beside the sampling.
        params: Sampling parameters, from the engine.
        n: Samples per prompt, 1 to SEED_STRIDE.
        seed: Of the whole collection.
        greedy: Whether every prompt also gets a greedy answer, rewarded but not embedded.
        reward_workers: Threads.
        progress: Called with the number of samples that were added, and after each step of the
            engine with 0: a shard is sampled all at once, so that for long none of it ends.

    Raises:
        RewardError: A reward failed; what was written before stays.
    """
    with _reward_pool(reward_workers) as pool:
        shards = _Shards(engine, writer, rows, reward, pool, progress)
        for shard in writer.missing():
            asked: list[_Asked] = []
            for prompt in writer.prompts_of(shard):
                if greedy:
                    asked.append(_Asked(prompt, GREEDY, None))
                first = seed + prompt * SEED_STRIDE
                asked += [_Asked(prompt, index, first + index) for index in range(n)]
            completions = engine.sample(
                [prompts[each.prompt] for each in asked],
                params,
                seeds=[each.seed for each in asked],
                on_step=partial(progress, 0),
            )
            shards.write(shard, asked, completions)
    writer.finish()


def collect_given(
    engine: "SamplingEngine",
    writer: DatasetWriter,
    rows: list[PromptRow],
    prompts: list[list[int]],
    reward: Reward | None,
    *,
    reward_workers: int,
    progress: Progress,
) -> None:
    """Write the shards that are missing, from the completions that the rows bring.

    Args and errors are those of ``collect_samples``; ``reward`` is for completions without one.
    """
    with _reward_pool(reward_workers) as pool:
        shards = _Shards(engine, writer, rows, reward, pool, progress)
        for shard in writer.missing():
            asked, texts = [], []
            for prompt in writer.prompts_of(shard):
                for index, each in enumerate(rows[prompt].completions):
                    asked.append(_Asked(prompt, index, None, each.reward))
                    texts.append(each.text)
            completions = engine.read(
                [prompts[each.prompt] for each in asked], texts, on_step=partial(progress, 0)
            )
            shards.write(shard, asked, completions)
    writer.finish()


@contextmanager
def _reward_pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    def free() -> None:
        with suppress(OSError):  # where it is not allowed they run beside the engine
            os.sched_setaffinity(0, _CORES)

    pool = ThreadPoolExecutor(workers, initializer=free)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Shards:
    """What the shards of one collection are made with."""

    engine: "SamplingEngine"
    writer: DatasetWriter
    rows: list[PromptRow]
    reward: Reward | None
    pool: ThreadPoolExecutor
    progress: Progress

    def write(self, shard: int, asked: list[_Asked], completions: "Iterable[Completion]") -> None:
        """Reward completions as they come, and write the shard when all of them have."""
        done: list[tuple[Completion, Future[float] | None]] = []
        failed: SimpleQueue[tuple[_Asked, Future[float]]] = SimpleQueue()
        for completion in completions:
            if not failed.empty():
                self._reward_of(*failed.get())  # raises: no need to sample the rest
            what = asked[completion.request]
            pending = None
            if what.reward is None:
                assert self.reward is not None  # the command line has checked that there is one
                fields = self.rows[what.prompt].fields
                pending = self.pool.submit(self.reward, fields, completion.text)
                pending.add_done_callback(partial(_note_failure, failed, what))
            done.append((completion, pending))
            self.progress(1)
        done.sort(key=lambda pair: pair[0].request)
        samples = []
        for each, pending in done:
            what = asked[each.request]
            samples.append(_to_sample(what, each, self._reward_of(what, pending)))
        embeddings = torch.stack(
            [each.embeddings.flatten(0, 1) for each, _ in done if each.embeddings is not None]
        )  # (samples, readings, hidden)
        names = map(str, readings_of(self.engine))
        self.writer.write(shard, samples, {name: embeddings[:, i] for i, name in enumerate(names)})

    def _reward_of(self, what: _Asked, pending: Future[float] | None) -> float:
        if pending is None:
            assert what.reward is not None
            return what.reward
        try:
            return float(pending.result())
        except RewardError as error:
            line = self.rows[what.prompt].line
            raise RewardError(f"{error} (prompt of line {line}, sample {what.index})") from error


def _note_failure(
    failed: "SimpleQueue[tuple[_Asked, Future[float]]]", what: _Asked, ended: Future[float]
) -> None:
    if not ended.cancelled() and ended.exception() is not None:
        failed.put((what, ended))


def _to_sample(what: _Asked, completion: "Completion", reward: float) -> Sample:
    return Sample(
        prompt=what.prompt,
        index=what.index,
        text=completion.text,
        token_ids=completion.token_ids,
        num_scored=completion.num_scored,
        logprob=completion.logprob,
        finish_reason=completion.finish_reason,
        seed=what.seed,
        reward=reward,
    )
