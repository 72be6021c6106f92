"""The worker class on CUDA and ROCm devices, named to vLLM by its path."""

from vllm.v1.worker.gpu_worker import Worker

from qprobe_server.vllm_backend.scoring import ScoringMixin

__all__ = ["ScoringWorker"]


class ScoringWorker(ScoringMixin, Worker):
    """vLLM's GPU worker that scores candidates."""
