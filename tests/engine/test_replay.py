"""What is taped of a candidate gives the outputs that vLLM makes of the same steps; no engine.

The steps are made up: any number of tokens each, as speculative decoding accepts them, any ends.
"""

import random
from collections.abc import AsyncIterator
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.tokenizers import get_tokenizer
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.outputs import LogprobsLists, SamplingMaskLists

from qprobe_server.vllm_backend.client.candidate_run import CandidateRun
from qprobe_server.vllm_backend.client.fan_out import Prepared
from qprobe_server.vllm_backend.client.replay import replay

DELTA, CUMULATIVE, FINAL = (
    RequestOutputKind.DELTA,
    RequestOutputKind.CUMULATIVE,
    RequestOutputKind.FINAL_ONLY,
)
PROMPT = [11, 12, 13]


@pytest.fixture(scope="module")
def tokenizer(small_model: Path) -> Any:
    return get_tokenizer(str(small_model))


class Case:
    """A request and the steps of its one candidate, drawn by a seed.

    Attributes:
        params: Of the request; the output kind is set later.
        steps: As the engine gives them.
        is_aborted: Whether an abort ends it.
    """

    def __init__(self, seed: int, tokenizer: Any) -> None:
        chance = random.Random(seed)
        text = "".join(
            chance.choice(["ab ", "é", "漢", "😀", " the", "\n", "x", " 👩\u200d🚀"])
            for _ in range(30)
        )
        tokens = tokenizer.encode(text, add_special_tokens=False)[: chance.randint(1, 40)]
        written = tokenizer.decode(tokens)
        stop = []
        for _ in range(chance.choice([0, 0, 1, 3])):
            at = chance.randrange(max(1, len(written)))
            stop.append(written[at : at + chance.randint(1, 4)] or "x")
        self.params = SamplingParams(
            max_tokens=1000,
            stop=stop,
            include_stop_str_in_output=chance.random() < 0.3,
            min_tokens=chance.choice([0, 0, 5]),
            logprobs=chance.choice([None, 0, 3, -1]),
            stream_interval=chance.choice([None, 1, 4]),
        )
        self.is_aborted = chance.random() < 0.3
        self.steps: list[EngineCoreOutput] = []
        has_masks = chance.random() < 0.3
        while tokens:
            count = chance.randint(1, 4)
            self.steps.append(self._make_step(tokens[:count], chance, has_masks=has_masks))
            tokens = tokens[count:]
        self.steps[0].prefill_stats = PrefillStats()
        self.steps[0].prefill_stats.num_cached_tokens = 2
        if not self.is_aborted:
            self._end(chance)

    def _end(self, chance: random.Random) -> None:
        end = self.steps[-1]
        if chance.random() < 0.2:
            end = EngineCoreOutput("r-1", [])
            self.steps.append(end)
        end.finish_reason = chance.choice(
            [FinishReason.STOP, FinishReason.LENGTH, FinishReason.ERROR]
        )
        if end.finish_reason is FinishReason.STOP:
            end.stop_reason = chance.choice([None, 7])
        end.routed_experts = np.ones((4, 2, 1))

    def _make_step(
        self, tokens: list[int], chance: random.Random, *, has_masks: bool
    ) -> EngineCoreOutput:
        step = EngineCoreOutput("r-1", tokens)
        if self.params.logprobs is not None:
            # Of all tokens, or of some more than are wanted: others of the batch want them.
            wanted = self.params.logprobs
            columns = 12 if wanted == -1 else wanted + 1 + chance.randint(0, 2)
            ids = np.array([[each, *range(columns - 1)] for each in tokens], np.int32)
            values = -np.arange(ids.size, dtype=np.float32).reshape(ids.shape)
            step.new_logprobs = LogprobsLists(ids, values, np.arange(1, len(tokens) + 1))
        if has_masks:
            offsets = np.arange(len(tokens) + 1) * 2
            step.new_sampling_mask = SamplingMaskLists(np.arange(2 * len(tokens)), offsets)
        return step


def make_request(params: SamplingParams, kind: RequestOutputKind) -> EngineCoreRequest:
    params = copy(params)
    params.output_kind = kind
    return EngineCoreRequest(
        request_id="r-1",
        prompt_token_ids=PROMPT,
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
        external_req_id="r",
    )


def process(
    case: Case, kind: RequestOutputKind, tokenizer: Any, collector: Any, tape: Any = None
) -> None:
    """Have vLLM make outputs of the steps, as it does while they come."""
    processor = OutputProcessor(tokenizer, log_stats=False, stream_interval=1)
    processor.add_request(make_request(case.params, kind), "said", None, 0, collector)
    if tape is not None:
        processor.request_states["r-1"].logprobs_processor = tape
    for step in deepcopy(case.steps):
        processor.process_outputs([step], weight_version="7")
    processor.abort_requests(["r-1"], internal=True)


def replayed(
    winners: list[CandidateRun], case: Case, kind: RequestOutputKind, tokenizer: Any
) -> AsyncIterator[RequestOutput]:
    prepared = Prepared(make_request(case.params, FINAL), "said")
    return replay(winners, prepared, kind, OutputProcessor(tokenizer, log_stats=False))


def describe(output: RequestOutput) -> dict[str, Any]:
    """Return all of an output as it is now: of cumulative ones the lists go on growing."""
    (completion,) = deepcopy(output.outputs)
    seen = {name: getattr(completion, name) for name in CompletionOutput.__dataclass_fields__}
    seen["token_ids"] = list(completion.token_ids)
    seen["routed_experts"] = np.shape(completion.routed_experts)
    for name in ("request_id", "prompt", "prompt_token_ids", "finished", "num_cached_tokens"):
        seen[name] = getattr(output, name)
    return seen


class Made:
    """Collects outputs as vLLM gives them.

    Attributes:
        outputs: Described.
    """

    def __init__(self) -> None:
        self.outputs: list[dict[str, Any]] = []

    def put(self, output: RequestOutput) -> None:
        self.outputs.append(describe(output))


@pytest.mark.parametrize("kind", [DELTA, CUMULATIVE, FINAL])
@pytest.mark.parametrize("first", range(0, 300, 50))
async def test_the_outputs_are_those_of_the_first_pass(
    tokenizer: Any, kind: RequestOutputKind, first: int
) -> None:
    for seed in range(first, first + 50):
        case = Case(seed, tokenizer)
        made = Made()
        process(case, kind, tokenizer, made)
        winner = CandidateRun("key", case.params.num_logprobs, lambda: None)
        process(case, FINAL, tokenizer, winner, winner.tape)
        found = [describe(each) async for each in replayed([winner], case, kind, tokenizer)]
        assert found == made.outputs, seed


async def test_two_winners_are_two_answers_of_one_request(tokenizer: Any) -> None:
    cases = [Case(seed, tokenizer) for seed in (3, 4)]
    for case in cases:
        case.params = cases[0].params.clone()
        case.params.logprobs, case.params.stop = None, []
        for step in case.steps:
            step.new_logprobs = None
    winners = [CandidateRun("key", None, lambda: None) for _ in cases]
    for winner, case in zip(winners, cases, strict=True):
        process(case, FINAL, tokenizer, winner, winner.tape)
    texts = [winner.read().text for winner in winners]
    (whole,) = [each async for each in replayed(winners, cases[0], FINAL, tokenizer)]
    assert [(each.index, each.text) for each in whole.outputs] == [*enumerate(texts)]
    assert whole.finished
    parts = [each async for each in replayed(winners, cases[0], DELTA, tokenizer)]
    indices = [each.outputs[0].index for each in parts]
    assert indices == sorted(indices)
    assert [each.finished for each in parts] == [False] * (len(parts) - 1) + [True]
    for index, text in enumerate(texts):
        mine = [each.outputs[0] for each in parts if each.outputs[0].index == index]
        assert "".join(each.text for each in mine) == text
        assert [bool(each.finish_reason) for each in mine] == [False] * (len(mine) - 1) + [True]
