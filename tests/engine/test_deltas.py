"""A stream's deltas are those that vLLM makes of the same tokens, on the real engine.

No candidate is sampled as a stream: the winner is cut into deltas when it has been chosen.
"""

import json
import weakref
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine.output_processor import RequestOutputCollector, RequestState

from qprobe.probe.schedule import Step
from qprobe_server.vllm_backend.client.engine import RerankingLLM
from qprobe_server.vllm_backend.client.tape import Tape

ChatIds = Callable[[str], list[int]]
HEADED = 82  # as in conftest.py: the probe that has heads
# Characters of one to four bytes, which take several tokens; a zero-width joiner between two.
WRITTEN = "ab é ü漢字 😀👩\u200d🚀 ¿ends? <|no|> é"


@pytest.fixture(scope="module")
def prompt(chat_ids: ChatIds) -> list[int]:
    return chat_ids("Write a Python function `add(a, b)` that returns the sum of a and b.")


async def stream_bare(
    engine: RerankingLLM, prompt: list[int], patch: pytest.MonkeyPatch, **fields: Any
) -> list[RequestOutput]:
    """Return the deltas as vLLM makes them, before a slow reader finds some joined."""
    made: list[RequestOutput] = []
    put = RequestOutputCollector.put

    def note(self: RequestOutputCollector, output: Any) -> None:
        made.append(deepcopy(output))
        put(self, output)

    params = SamplingParams(
        output_kind=RequestOutputKind.DELTA, **{"temperature": 0.8, "max_tokens": 24, **fields}
    )
    with patch.context() as patched:
        patched.setattr(RequestOutputCollector, "put", note)
        async for _ in engine.generate(
            {"type": "token", "prompt_token_ids": prompt}, params, "bare"
        ):
            pass
    return made


def describe(output: RequestOutput) -> dict[str, Any]:
    """Return all that a client may see of an output."""
    (completion,) = output.outputs
    seen = {name: getattr(completion, name) for name in CompletionOutput.__dataclass_fields__}
    seen["token_ids"] = list(completion.token_ids)
    for name in ("prompt", "prompt_token_ids", "prompt_logprobs", "finished"):
        seen[name] = getattr(output, name)
    assert output.metrics is not None
    assert output.num_cached_tokens is not None
    return seen


CHOICE = StructuredOutputsParams(choice=[WRITTEN])
CALL = StructuredOutputsParams(
    json={
        "type": "object",
        "properties": {"name": {"const": "add"}, "parameters": {"enum": [{"a": "é😀"}]}},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 1},
        {"logprobs": 0},
        {"logprobs": 20, "max_tokens": 12},
        {"logprobs": 3, "flat_logprobs": True},
        {"logprob_token_ids": [5, 9, 200], "max_tokens": 8},
        {"prompt_logprobs": 2, "logprobs": 1},
        {"stop": [" a", "\n", "the"], "max_tokens": 60, "logprobs": 1},
        {"stop": ["t"], "include_stop_str_in_output": True, "min_tokens": 6, "max_tokens": 60},
        {"stop_token_ids": list(range(0, 8192, 7)), "max_tokens": 60},
        {"stop_token_ids": list(range(0, 8192, 7)), "include_stop_str_in_output": True},
        {"structured_outputs": CHOICE, "max_tokens": 80},
        {"structured_outputs": CHOICE, "max_tokens": 80, "logprobs": 4},
        {"structured_outputs": CHOICE, "max_tokens": 80, "stop": ["😀👩", "nds"], "logprobs": 1},
        {"structured_outputs": CHOICE, "max_tokens": 80, "stop": ["🚀"], "stream_interval": 4},
        {"structured_outputs": CHOICE, "max_tokens": 7},
        {"structured_outputs": CALL, "max_tokens": 80, "skip_special_tokens": False},
        {"stream_interval": 5},
        {"stream_interval": 5, "stop": [" a", "the"], "max_tokens": 60, "logprobs": 2},
        {"stream_interval": 100},
        {"detokenize": False},
        {"temperature": 0.0, "logprobs": 1},
    ],
)
async def test_deltas_are_vllms_own(
    ask: Any,
    engine: RerankingLLM,
    prompt: list[int],
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
) -> None:
    """One by one: text, tokens, logprobs, reasons. Tools and reasoning are read from these."""
    for seed in (3, 4):
        bare = await stream_bare(engine, prompt, monkeypatch, seed=seed, **fields)
        ours = await ask(prompt, k=1, seed=seed, stream=True, **fields)
        assert [describe(each) for each in ours.outputs] == [describe(each) for each in bare]
        assert {each.request_id for each in ours.outputs} == {f"test-{id(ours.rerank)}"}


@pytest.mark.parametrize("schedule", [(), (Step(4, 3), Step(8, 2))])
async def test_the_answers_of_a_stream_are_those_without(
    ask: Any, prompt: list[int], schedule: tuple[Step, ...]
) -> None:
    """Two winners of six, with a schedule and without: one after the other, each whole."""
    asked = {"probe": HEADED, "schedule": schedule, "k": 6, "n": 2, "seed": 11, "logprobs": 2}
    whole = await ask(prompt, **asked, stop=["the"], max_tokens=40)
    parts = await ask(prompt, **asked, stop=["the"], max_tokens=40, stream=True, stream_interval=3)
    assert parts.result["selected"] == whole.result["selected"]
    for index, answer in enumerate(whole.answers):
        mine = [each.outputs[0] for each in parts.outputs if each.outputs[0].index == index]
        assert "".join(each.text for each in mine) == answer.text
        assert [token for each in mine for token in each.token_ids] == list(answer.token_ids)
        entries = [entry for each in mine for entry in each.logprobs]
        for one, other in zip(entries, answer.logprobs, strict=True):
            assert one.keys() == other.keys()
            for token, found in one.items():  # losers leave in another step: float32 rounds anew
                assert found.logprob == pytest.approx(other[token].logprob, abs=1e-3)
        assert mine[-1].cumulative_logprob == pytest.approx(answer.cumulative_logprob, abs=1e-2)
        assert (mine[-1].finish_reason, mine[-1].stop_reason) == (
            answer.finish_reason,
            answer.stop_reason,
        )
    assert [each.index for each in whole.answers] == [0, 1]
    assert [each.finished for each in parts.outputs].index(True) == len(parts.outputs) - 1


async def test_of_losers_nothing_is_decoded_or_kept(
    ask: Any, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their logprobs stay numbers, each makes one output, and all are gone as the stream begins."""
    made: list[RequestOutput] = []
    tapes: list[weakref.ref[Tape]] = []
    kept: list[int] = []
    make = RequestState.make_request_output

    def note(self: RequestState, *args: Any, **named: Any) -> Any:
        output = make(self, *args, **named)
        if not isinstance(self.logprobs_processor, Tape):
            kept.append(sum(tape() is not None for tape in tapes))
        elif output is not None:
            made.append(output)
            tapes.append(weakref.ref(self.logprobs_processor))
        return output

    monkeypatch.setattr(RequestState, "make_request_output", note)
    asked = {"k": 8, "seed": 1, "logprobs": 5, "max_tokens": 30, "min_tokens": 30}
    answer = await ask(prompt, **asked, stream=True)
    assert len(answer.outputs) == 30
    assert [output.outputs[0].logprobs for output in made] == [None] * 8
    assert kept == [1] * 30


async def test_the_prompt_is_read_once(
    ask: Any, engine: RerankingLLM, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A schema of 30 KiB takes 15 ms to check, once for 16 candidates; and holds for each."""
    read = []
    process = engine.input_processor.process_inputs

    def note(*args: Any, **named: Any) -> Any:
        read.append(args)
        return process(*args, **named)

    monkeypatch.setattr(engine.input_processor, "process_inputs", note)
    kinds = [f"kind-{number:020}" for number in range(1000)]
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": kinds}},
        "required": ["kind"],
        "additionalProperties": False,
    }
    params = StructuredOutputsParams(json=schema)
    answer = await ask(
        prompt, k=16, n=16, structured_outputs=params, max_tokens=80, temperature=1.0
    )
    assert len(read) == 1
    for each in answer.answers:
        assert json.loads(each.text)["kind"] in kinds
