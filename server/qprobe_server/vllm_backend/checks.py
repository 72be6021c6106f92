"""Whether vLLM, the machine and the model are such that probes can be scored.

Relies on vLLM 0.32.0: ``SpeculativeConfig.enable_adaptive_verification``,
``CacheConfig.kv_sharing_fast_prefill``, ``envs.VLLM_USE_RAY_V2_EXECUTOR_BACKEND``,
``ModelConfig.get_hidden_size, get_total_num_hidden_layers``, ``get_model_cls`` and
``supports_eagle3``.
"""

import importlib.util
from typing import Any

import vllm
from vllm import envs
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.utils import get_model_cls
from vllm.model_executor.models.interfaces import supports_eagle3
from vllm.platforms import current_platform

from qprobe_server.errors import StartupError
from qprobe_server.library.fit import ModelFacts

__all__ = [
    "VLLM_VERSION",
    "check_installation",
    "describe_model",
    "find_worker_cls",
]

VLLM_VERSION = "0.32.0"


def check_installation() -> None:
    """Refuse what is known not to work.

    Raises:
        StartupError: Another vLLM than the pinned one, or a torchvision that breaks transformers.
    """
    if vllm.__version__.split("+")[0] != VLLM_VERSION:
        raise StartupError(f"qprobe needs vllm=={VLLM_VERSION}, found {vllm.__version__}")
    if importlib.util.find_spec("torchvision") is not None:
        try:
            importlib.import_module("torchvision")
        except (ImportError, OSError, RuntimeError) as error:
            raise StartupError(
                "the installed torchvision does not fit the installed torch, and nothing here "
                f"needs it: pip uninstall torchvision torchaudio torchcodec ({error})"
            ) from error


def find_worker_cls(name: str) -> str:
    """Return the path of our worker class of that name for this machine.

    Raises:
        StartupError: The platform is neither CPU, CUDA nor ROCm.
    """
    if current_platform.is_cpu():
        return f"qprobe_server.vllm_backend.worker.cpu_worker.{name}"
    if current_platform.is_cuda_alike():
        return f"qprobe_server.vllm_backend.worker.gpu_worker.{name}"
    raise StartupError(f"probes cannot be scored on vLLM's platform {current_platform.device_name}")


def describe_model(config: VllmConfig) -> ModelFacts:
    """Return what the probes must fit.

    Raises:
        StartupError: The model does not generate text, or vLLM is told to work in a way that gives
            no states or the wrong ones.
    """
    model: Any = config.model_config
    if model.runner_type != "generate":
        raise StartupError(
            f"model {model.model!r} does not generate text, it runs as a "
            f"{model.runner_type!r} model"
        )
    drafting = config.speculative_config
    if drafting is not None and drafting.enable_adaptive_verification:
        raise StartupError(
            "--speculative-config: with enable_adaptive_verification the device decides which "
            "drafts it reads, and the host does not know whose states are whose: set it to false"
        )
    if config.cache_config.kv_sharing_fast_prefill:
        raise StartupError(
            "--kv-sharing-fast-prefill: of prompts, and of what is read again, vLLM computes only "
            "the last states then, which probes cannot do with: leave it out"
        )
    if (
        config.parallel_config.distributed_executor_backend == "ray"
        and not envs.VLLM_USE_RAY_V2_EXECUTOR_BACKEND
    ):
        raise StartupError(
            "VLLM_USE_RAY_V2_EXECUTOR_BACKEND: is 0, but vLLM's older executor for Ray goes past "
            "the worker, which scores: unset it"
        )
    model_class = get_model_cls(model)
    return ModelFacts(
        name=model.model,
        architecture=model_class.__name__,
        hidden_size=model.get_hidden_size(),
        num_layers=model.get_total_num_hidden_layers(),
        has_inner_layers=supports_eagle3(model_class),
        has_adapters=config.lora_config is not None,
        logprobs_mode=model.logprobs_mode,
    )
