"""Makes a dataset: samples prompts on the engine, rewards the answers meanwhile, writes shards.

Knows nothing of vLLM but ``SamplingEngine``; the folder's format is ``qprobe.data.dataset``'s.
"""

import math
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from qprobe.data.dataset import Reading, Sample
from qprobe.data.folder import tokens_name
from qprobe.data.prompts import PromptRow
from qprobe.data.writer import DatasetWriter
from qprobe.rewards.rating import Rated
from qprobe_server.commands.rewarding import Rewarding
from qprobe_server.commands.wanted import Wanted, begin_reward, list_given, list_samples

if TYPE_CHECKING:  # it imports vLLM, which takes seconds
    from qprobe_server.vllm_backend.completion import Completion
    from qprobe_server.vllm_backend.sampling import SamplingEngine
    from qprobe_server.vllm_backend.sampling_parameters import SamplingParameters

__all__ = ["collect_given", "collect_samples", "readings_of"]

# Of the log-probability of a token: the sum over a thousand is off by 0.05 at most.
_DECIMALS = 4
Progress = Callable[[int], object]


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
    rewarding: Rewarding,
    *,
    params: "SamplingParameters",
    n: int,
    seed: int,
    greedy: bool,
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
        rewarding: Open; goes on beside the sampling.
        params: Sampling parameters, from the engine.
        n: Samples per prompt, 1 to SEED_STRIDE.
        seed: Of the whole collection.
        greedy: Whether every prompt also gets a greedy answer, rewarded but not embedded.
        progress: Called with the number of samples that were added, and after each step of the
            engine with 0: a shard is sampled all at once, so that for long none of it ends.

    Raises:
        RewardError: A reward failed; what was written before stays.
    """
    shards = _Shards(engine, writer, rows, rewarding, progress)
    for shard in writer.missing():
        wanted = list_samples(writer.prompts_of(shard), n=n, seed=seed, greedy=greedy)
        completions = engine.sample(
            [prompts[each.prompt] for each in wanted],
            params,
            seeds=[each.seed for each in wanted],
            on_step=partial(progress, 0),
        )
        shards.write(shard, wanted, completions)
    writer.finish()


def collect_given(
    engine: "SamplingEngine",
    writer: DatasetWriter,
    rows: list[PromptRow],
    prompts: list[list[int]],
    rewarding: Rewarding,
    *,
    progress: Progress,
) -> None:
    """Write the shards that are missing, from the completions that the rows bring.

    Args and errors are those of ``collect_samples``; ``rewarding`` is for completions without a
    reward.
    """
    shards = _Shards(engine, writer, rows, rewarding, progress)
    for shard in writer.missing():
        given = list_given(writer.prompts_of(shard), rows)
        completions = engine.read(
            [prompts[each.prompt] for each, _ in given],
            [text for _, text in given],
            on_step=partial(progress, 0),
        )
        shards.write(shard, [each for each, _ in given], completions)
    writer.finish()


@dataclass(frozen=True)
class _Shards:
    """What the shards of one collection are made with."""

    engine: "SamplingEngine"
    writer: DatasetWriter
    rows: list[PromptRow]
    rewarding: Rewarding
    progress: Progress

    def write(self, shard: int, wanted: list[Wanted], completions: "Iterable[Completion]") -> None:
        """Reward completions as they come, and write the shard when all of them have."""
        done: list[tuple[Completion, Future[Rated]]] = []
        for completion in completions:
            what = wanted[completion.request]
            rated = begin_reward(self.rewarding, self.rows, what, completion.text)
            done.append((completion, rated))
            self.progress(1)
        self.rewarding.flush()
        done.sort(key=lambda pair: pair[0].request)
        samples = [_to_sample(wanted[each.request], each, rated.result()) for each, rated in done]
        embeddings = torch.stack(
            [each.embeddings.flatten(0, 1) for each, _ in done if each.embeddings is not None]
        )  # (samples, readings, hidden)
        names = map(str, readings_of(self.engine))
        found = {name: embeddings[:, i] for i, name in enumerate(names)}
        for i, layer in enumerate(self.engine.token_layers):
            states = [each.tokens[i] for each, _ in done if each.tokens is not None]
            found[tokens_name(layer)] = torch.cat(states)
        self.writer.write(shard, samples, found)


def _to_sample(what: Wanted, completion: "Completion", rated: Rated) -> Sample:
    return Sample(
        prompt=what.prompt,
        index=what.index,
        text=completion.text,
        token_ids=completion.token_ids,
        num_scored=completion.num_scored,
        logprob=math.fsum(completion.logprobs),
        logprobs=[round(each, _DECIMALS) for each in completion.logprobs],
        finish_reason=completion.finish_reason,
        seed=what.seed,
        reward=rated.reward,
        reason=rated.reason,
    )
