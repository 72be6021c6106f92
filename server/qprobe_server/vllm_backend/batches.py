"""Runs many requests on vLLM's offline engine, the same ones in the same batches every time.

Relies on vLLM 0.32.0: ``LLM.enqueue, reset_prefix_cache`` (entrypoints/llm.py), ``LLMEngine.step,
has_unfinished_requests`` (v1/engine/llm_engine.py), and ``VLLM_ENABLE_V1_MULTIPROCESSING=0``: the
scheduler then runs in this process.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.outputs import RequestOutput

__all__ = ["run_requests"]

# Host memory for the states of running completions. A number, and not a share of what is free now:
# it decides which requests meet in a batch, and so the samples.
_MAX_STATE_BYTES = 8 << 30


def run_requests(
    llm: LLM,
    prompts: Sequence[list[int]],
    params: Sequence[SamplingParams],
    *,
    lora: LoRARequest | None,
    state_bytes: int,
    on_step: Callable[[], object],
) -> Iterator[tuple[int, RequestOutput]]:
    """Run requests until the engine is idle; yield each, when finished, with its index.

    Args:
        llm: Idle.
        prompts: Their tokens.
        params: Of each.
        lora: The adapter that all run with.
        state_bytes: What the states of one token of a completion take on the host.
        on_step: Called after each step of the engine.
    """
    engine = llm.llm_engine
    waiting = deque(range(len(prompts)))
    places: dict[str, int] = {}
    num_running, most = 0, _count_fitting(llm, prompts, params, state_bytes)
    while waiting or engine.has_unfinished_requests():
        while waiting and num_running < most:
            index = waiting.popleft()
            (request_id,) = llm.enqueue(
                {"prompt_token_ids": prompts[index]},
                params[index],
                use_tqdm=False,
                lora_request=lora,
            )
            # That is vLLM's internal id: the one of the output and a random suffix.
            places[request_id.rsplit("-", 1)[0]] = index
            num_running += 1
        for output in engine.step():
            if output.finished:
                num_running -= 1
                yield places[output.request_id], output
        on_step()
    # The next batch begins as this one did.
    llm.reset_prefix_cache()


def _count_fitting(
    llm: LLM,
    prompts: Sequence[list[int]],
    params: Sequence[SamplingParams],
    state_bytes: int,
) -> int:
    """Return how many requests' states fit into the memory set aside for them."""
    context = llm.model_config.max_model_len
    # Of a prompt only what a completion is read in counts: at most all of it.
    lengths = [
        len(prompt) if each.skip_reading_prefix_cache else each.max_tokens
        for prompt, each in zip(prompts, params, strict=True)
    ]
    most_tokens = min(context, max(length or context for length in lengths))
    # The store's capacity is up to twice what is in it.
    return max(1, _MAX_STATE_BYTES // (2 * most_tokens * state_bytes))
