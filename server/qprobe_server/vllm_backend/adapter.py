"""The LoRA adapter that completions are sampled with.

Relies on vLLM 0.32.0: ``MaxLoRARanks`` (config/lora.py), the ranks that it takes.
"""

import argparse
import json
from pathlib import Path
from typing import get_args

from vllm.config.lora import MaxLoRARanks

from qprobe_server.errors import StartupError

__all__ = ["enable_adapter"]


def enable_adapter(args: argparse.Namespace, adapter: Path) -> None:
    """Have vLLM take an adapter of its rank.

    Raises:
        StartupError: It is no folder of a LoRA adapter, or of a higher rank than vLLM takes.
    """
    try:
        rank = int(json.loads((adapter / "adapter_config.json").read_text("utf-8"))["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StartupError(
            f"--adapter {str(adapter)!r} is no folder of a LoRA adapter: adapter_config.json: "
            f"{type(error).__name__}: {error}"
        ) from error
    ranks = sorted(get_args(MaxLoRARanks))
    fitting = [each for each in ranks if each >= max(rank, args.max_lora_rank)]
    if not fitting:
        raise StartupError(f"--adapter {str(adapter)!r}: rank must be <= {ranks[-1]}, got {rank}")
    args.enable_lora, args.max_lora_rank = True, fitting[0]
