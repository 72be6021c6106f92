"""Copies from the device to the host that nobody waits for, and what is done once they are there.

Relies on nothing of vLLM.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["CopyQueue", "start_copy", "upload"]


class CopyQueue:
    """What the host does after copies, in the order in which it was put here."""

    def __init__(self) -> None:
        # (torch.cuda.Event or None, what to do)
        self._waiting: deque[tuple[Any, Callable[[], None]]] = deque()

    def after_copies(self, device: torch.device, then: Callable[[], None]) -> None:
        """Do something once all copies that were begun on a device until now are there."""
        event = None
        if device.type != "cpu":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch has no type for it
            event.record()
        self._waiting.append((event, then))

    def then(self, do: Callable[[], None]) -> None:
        """Do something after all that is here already."""
        self._waiting.append((None, do))

    def run(self, *, wait: bool) -> None:
        """Do what can be done; with ``wait`` all, after waiting for the device."""
        while self._waiting:
            event, do = self._waiting[0]
            if event is not None and not event.query():
                if not wait:
                    return
                event.synchronize()
            self._waiting.popleft()
            do()


def start_copy(tensor: Tensor) -> Tensor:
    """Begin to copy to the host; what is returned may be read after ``CopyQueue.after_copies``."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty_like(tensor, device="cpu", pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def upload(values: NDArray[np.int64], device: torch.device) -> Tensor:
    """Copy to the device without waiting for it, which takes pinned memory."""
    host = torch.from_numpy(values)
    if device.type == "cpu":
        return host
    return host.pin_memory().to(device, non_blocking=True)
