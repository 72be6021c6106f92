"""The chosen candidates as vLLM's serving code gets them: as if they were all that was sampled.

What the engine gave of a winner passes once more through vLLM's own output processor, now with the
request's output kind. So deltas, stop strings, logprobs and intervals are vLLM's.

Relies on vLLM 0.32.0: ``OutputProcessor.add_request/process_outputs/abort_requests/has_request``
(v1/engine/output_processor.py), which put outputs into the collector of a request, and
``CompletionOutput`` (outputs.py).
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from copy import copy
from types import SimpleNamespace

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.output_processor import OutputProcessor

from qprobe_server.edge.turns import Turns
from qprobe_server.vllm_backend.client.candidate_run import CandidateRun
from qprobe_server.vllm_backend.client.fan_out import Prepared

__all__ = ["replay"]


async def replay(
    winners: Sequence[CandidateRun],
    prepared: Prepared,
    kind: RequestOutputKind,
    theirs: OutputProcessor,
) -> AsyncGenerator[RequestOutput, None]:
    """Yield the winners' outputs as those of one request with n answers.

    All is there, so that nothing but ``Turns`` lets the event loop serve others meanwhile.

    Args:
        winners: The candidate of each answer; they have ended.
        prepared: What they have in common.
        kind: Of the outputs that the request wants.
        theirs: The engine's output processor.
    """
    turns = Turns()
    finals = []
    for index, winner in enumerate(winners):
        for output in _play(winner, prepared, kind, theirs, index):
            await turns.give_way()
            if output is None:
                continue
            if kind is RequestOutputKind.FINAL_ONLY:
                finals.append(output)
                continue
            output.finished = output.finished and winner is winners[-1]
            yield output
    if finals:
        answer = copy(finals[0])
        answer.outputs = [final.outputs[0] for final in finals]
        yield answer


def _play(
    winner: CandidateRun,
    prepared: Prepared,
    kind: RequestOutputKind,
    theirs: OutputProcessor,
    index: int,
) -> Iterator[RequestOutput | None]:
    """Make the outputs of one answer; None stands for work without an output."""
    final = winner.output
    assert final is not None
    (completion,) = final.outputs
    if kind is RequestOutputKind.FINAL_ONLY and not winner.tape.is_undecoded:
        completion.index = index
        yield final
        return
    request = copy(prepared.request)
    request.sampling_params = copy(request.sampling_params)
    request.sampling_params.output_kind = kind
    made: list[RequestOutput] = []
    mine = OutputProcessor(
        theirs.tokenizer, log_stats=False, stream_interval=theirs.stream_interval
    )
    collector = SimpleNamespace(put=made.append)
    mine.add_request(request, prepared.prompt_text, None, index, collector)
    for step in winner.tape.play(request.request_id, completion.token_ids, completion.stop_reason):
        mine.process_outputs([step])
        yield _take(made, final)
    if mine.has_request(request.request_id):  # the engine's last word was not a step
        mine.abort_requests([request.request_id], internal=True)
        yield _take(made, final)


def _take(made: list[RequestOutput], final: RequestOutput) -> RequestOutput | None:
    """Take the output that a step has made, and give it what only the first pass knows."""
    if not made:
        return None
    output = made.pop()
    output.metrics = final.metrics
    if output.finished:
        (completion,), (known,) = output.outputs, final.outputs
        completion.weight_versions = known.weight_versions
        completion.routed_experts = known.routed_experts
    return output
