"""The worker class on CUDA and ROCm devices, named to vLLM by its path."""

from vllm.v1.worker.gpu_worker import Worker

from qprobe_server.vllm_backend.worker.embedding import EmbeddingMixin
from qprobe_server.vllm_backend.worker.scoring import ScoringMixin

__all__ = ["EmbeddingWorker", "ScoringWorker"]


class ScoringWorker(ScoringMixin, Worker):
    """vLLM's GPU worker that scores candidates."""


class EmbeddingWorker(EmbeddingMixin, Worker):
    """vLLM's GPU worker that embeds completions."""
