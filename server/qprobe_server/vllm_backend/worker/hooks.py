"""Where our worker classes look at vLLM's steps.

Relies on vLLM 0.32.0: ``Worker.load_model/execute_model/sample_tokens`` and
``use_v2_model_runner`` (v1/worker/gpu_worker.py; CPUWorker is a subclass), and
``SchedulerOutput.scheduled_new_reqs, finished_req_ids, total_num_scheduled_tokens``
(v1/core/sched/output.py). ``tests/engine/test_vllm_contract.py`` fails when one of them changes.

A request matters if its ``SamplingParams.extra_args`` hold EXTRA_ARG; others cost nothing.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from vllm.distributed.parallel_state import get_pcp_group, get_pp_group, get_tp_group

from qprobe_server.vllm_backend.worker.copies import CopyQueue
from qprobe_server.vllm_backend.worker.layers import expose_layers
from qprobe_server.vllm_backend.worker.step import Step, read_step

__all__ = ["ADDITIONAL_CONFIG", "EXTRA_ARG", "StepHooks"]

# Key in vLLM's additional_config: {"layers": [inner layers to expose]}. It enters the hash of the
# compile cache, so that a graph compiled without these outputs is never loaded.
ADDITIONAL_CONFIG = "qprobe"
# Key in SamplingParams.extra_args; what it holds is said by the classes that read it.
EXTRA_ARG = "qprobe"


class StepHooks(ABC):
    """Mixed into vLLM's worker class of a platform, before it.

    The last pipeline stage's first tensor-parallel rank reads states; the others do nothing. Of
    several ranks of prefill context parallelism all read, as they share their rows, and the first
    one speaks.
    """

    model_runner: Any
    vllm_config: Any
    device: torch.device
    use_v2_model_runner: bool

    def load_model(self, **kwargs: Any) -> None:
        """Load the model, then have it give the states of the layers that are wanted.

        Raises:
            ValueError: The layers cannot be had in this configuration.
        """
        super().load_model(**kwargs)  # type: ignore[misc]  # the worker class beside this mixin
        self._layers: list[int] = list(
            self.vllm_config.additional_config[ADDITIONAL_CONFIG]["layers"]
        )
        self._copies = CopyQueue()
        is_last = get_pp_group().is_last_rank
        self._reads = is_last and get_tp_group().rank_in_group == 0
        self._speaks = self._reads and get_pcp_group().rank_in_group == 0
        if self._layers and is_last:
            expose_layers(self.model_runner, self._layers)

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run a step; before it, note which requests begin and which have ended."""
        if self._reads:
            self._note_requests(scheduler_output)
        return super().execute_model(scheduler_output)  # type: ignore[misc]  # as above

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Read the states of the step's tokens, then sample the next."""
        if self._has_requests():
            step = read_step(self.model_runner, is_v2=self.use_v2_model_runner)
            if step is not None:
                with torch.inference_mode():
                    self._read(step)
                self._copies.run(wait=False)
        return super().sample_tokens(grammar_output)  # type: ignore[misc]  # as above

    def _note_requests(self, scheduler_output: Any) -> None:
        if self._has_requests():
            for request_id in scheduler_output.finished_req_ids:
                self._end(request_id)
        for request in scheduler_output.scheduled_new_reqs:
            params = request.sampling_params
            asked = params.extra_args.get(EXTRA_ARG) if params and params.extra_args else None
            if asked is not None:
                self._begin(request.req_id, asked)
        # An engine that has nothing to do calls once more, to tell what has finished, and then
        # no more: whoever waits for that would wait for ever.
        self._copies.run(wait=scheduler_output.total_num_scheduled_tokens == 0)

    @abstractmethod
    def _has_requests(self) -> bool:
        """Whether there is a request that matters."""

    @abstractmethod
    def _begin(self, request_id: str, asked: Any) -> None:
        """Note a request that begins, or begins anew: V2 sends preempted ones as new ones."""

    @abstractmethod
    def _end(self, request_id: str) -> None:
        """Note that a request has ended, by whatever end; it may be one that does not matter."""

    @abstractmethod
    def _read(self, step: Step) -> None:
        """Do something with the states of a step."""
