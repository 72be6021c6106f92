"""The worker class on CPUs, named to vLLM by its path.

Relies on vLLM 0.32.0: ``GPUModelRunner._bookkeeping_sync`` (v1/worker/gpu_model_runner.py), which
rewinds the generator of a seeded request that is still reading its prompt. PyTorch's CPU generators
cannot be rewound ("CPU Generator does not use offset"), so that a seeded request whose prompt is
read in more than one step kills the bare engine.
"""

from typing import Any

import numpy as np
from vllm.v1.worker.cpu_worker import CPUWorker

from qprobe_server.vllm_backend.worker.embedding import EmbeddingMixin
from qprobe_server.vllm_backend.worker.scoring import ScoringMixin

__all__ = ["EmbeddingWorker", "ScoringWorker"]


class _SparedGenerators(CPUWorker):
    """vLLM's CPU worker that reads seeded prompts in parts."""

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Sample without touching the generators of requests whose sample is thrown away."""
        if self.use_v2_model_runner:  # has none
            return super().sample_tokens(grammar_output)
        runner = self.model_runner
        generators = runner.input_batch.generators
        if not generators:
            return super().sample_tokens(grammar_output)
        mask = runner.discard_request_mask.np[: runner.input_batch.num_reqs]
        spared = {
            index: generators.pop(index)
            for index in np.flatnonzero(mask).tolist()
            if index in generators
        }
        try:
            return super().sample_tokens(grammar_output)
        finally:
            generators.update(spared)


class ScoringWorker(ScoringMixin, _SparedGenerators):
    """vLLM's CPU worker that scores candidates."""


class EmbeddingWorker(EmbeddingMixin, _SparedGenerators):
    """vLLM's CPU worker that embeds completions."""
