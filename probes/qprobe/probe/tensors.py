"""The tensors of a safetensors file, as float32, without torch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qprobe.errors import ProbeFileError

__all__ = ["Floats", "Tensors"]

Floats = NDArray[np.float32]
_DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


class Tensors:
    """Tensors that are taken one by one, until none is left.

    Args:
        found: By name: dtype, shape and bytes, as ``safetensors.deserialize`` gives them.
    """

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._found = dict(found)

    def __contains__(self, name: str) -> bool:
        return name in self._found

    def take(self, name: str, *, size: int | None = None) -> Floats:
        """Remove a tensor and return it.

        Args:
            name: Its name.
            size: That it must be a vector of; None lets it have any shape.

        Raises:
            ProbeFileError: It is not there, or of no float dtype, or not of that size.
        """
        if name not in self._found:
            raise ProbeFileError(f"tensors.{name}", "is missing")
        tensor = self._found.pop(name)
        dtype, shape = tensor["dtype"], tuple(tensor["shape"])
        if dtype == "BF16":  # the upper half of a float32
            halves = np.frombuffer(tensor["data"], "<u2").astype("<u4") << 16
            values = halves.view("<f4")
        elif dtype in _DTYPES:
            values = np.frombuffer(tensor["data"], np.dtype(_DTYPES[dtype]).newbyteorder("<"))
        else:
            raise ProbeFileError(f"tensors.{name}", f"must be of a float dtype, got {dtype}")
        if size is not None and shape != (size,):
            raise ProbeFileError(f"tensors.{name}", f"must have shape ({size},), got {shape}")
        with np.errstate(over="ignore"):  # what float32 cannot hold is refused as not finite
            return values.astype(np.float32).reshape(shape)

    def check_empty(self) -> None:
        """Check that nothing is left.

        Raises:
            ProbeFileError: Something is; the first is named.
        """
        for name in sorted(self._found):
            raise ProbeFileError(f"tensors.{name}", "is not a tensor of this probe")
