"""Which stored embedding of a completion is read. Needs no torch: command lines name it too."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qprobe.errors import DatasetError

if TYPE_CHECKING:
    from qprobe.probe.network import Layer, Pooling, ProbeInfo

__all__ = ["Reading"]


@dataclass(frozen=True)
class Reading:
    """Which embedding of a completion: as in ProbeInfo. ``str`` gives ``15/mean/32``."""

    layer: "Layer"
    pooling: "Pooling"
    window: int | None = None

    def __str__(self) -> str:
        parts = [self.layer, self.pooling, *([] if self.window is None else [self.window])]
        return "/".join(map(str, parts))

    @classmethod
    def of(cls, info: "ProbeInfo") -> "Reading":
        """Return what a probe reads."""
        return cls(info.layer, info.pooling, info.window)

    @classmethod
    def of_heads(cls, info: "ProbeInfo") -> dict[int, "Reading"]:
        """Return what a probe's heads read, by checkpoint."""
        return {tokens: cls(info.layer, "mean", tokens) for tokens in info.checkpoints}

    @classmethod
    def parse(cls, text: str) -> "Reading":
        """Read what ``str`` wrote.

        Raises:
            DatasetError: It is not LAYER/last, LAYER/mean or LAYER/mean/WINDOW.
        """
        found = re.fullmatch(r"(final|[1-9]\d*)/(?:(last)|mean(?:/([1-9]\d*))?)", text)
        if found is None:
            raise DatasetError(
                "reading", f"must be LAYER/last or LAYER/mean[/WINDOW], got {text!r}"
            )
        layer, last, window = found.groups()
        return cls(
            layer="final" if layer == "final" else int(layer),
            pooling="last" if last else "mean",
            window=int(window) if window else None,
        )
