"""The chosen candidates' outputs, handed to vLLM's serving code as those of one request.

Relies on vLLM 0.32.0: ``RequestOutput.add`` (outputs.py) and how ``RequestState`` applies a
``stream_interval`` (v1/engine/output_processor.py): the first token at once, then so many together.
"""

from collections.abc import AsyncGenerator

from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, SamplingParams

from qprobe_server.vllm_backend.client.candidate_run import Outputs
from qprobe_server.vllm_backend.client.turns import Turns

__all__ = ["replay"]


async def replay(
    winners: list[Outputs], request_id: str, params: SamplingParams
) -> AsyncGenerator[RequestOutput, None]:
    """Yield the winners' outputs as those of one request with n answers.

    They are all there, so that nothing but ``Turns`` lets the event loop serve others meanwhile.

    Args:
        winners: Of each answer.
        request_id: The request's.
        params: Of the request.
    """
    for index, outputs in enumerate(winners):
        for output in outputs:
            output.request_id = request_id
            output.outputs[0].index = index
            output.finished = False
    if params.output_kind is RequestOutputKind.FINAL_ONLY:
        answer = winners[0][-1]
        answer.outputs = [outputs[-1].outputs[0] for outputs in winners]
        answer.finished = True
        yield answer
        return
    turns = Turns()
    if params.output_kind is RequestOutputKind.DELTA and (params.stream_interval or 1) > 1:
        winners = [_gather(outputs, params.stream_interval or 1) for outputs in winners]
    winners[-1][-1].finished = True
    for outputs in winners:
        for output in outputs:
            await turns.give_way()
            yield output


def _gather(outputs: Outputs, interval: int) -> Outputs:
    """Join deltas as the request wants them, which a schedule wanted token by token."""
    first, *others = outputs
    gathered = [first]
    begins_anew = True
    for output in others:
        if begins_anew:
            gathered.append(output)
        else:
            gathered[-1].add(output, aggregate=True)
        begins_anew = len(gathered[-1].outputs[0].token_ids) >= interval
    return gathered
