"""Which embedding of a completion is read. Needs no torch: command lines name it too."""

import re
from dataclasses import dataclass

from qprobe.errors import DatasetError
from qprobe.probe.values import Pooling, Source

__all__ = ["EMBEDDING", "Reading"]


@dataclass(frozen=True)
class Reading:
    """Which embedding of a completion. ``str`` gives ``15/mean/32``.

    Attributes:
        layer: Index as in transformers' ``hidden_states``, 1 <= layer < num_layers (the residual
            stream after that many blocks, not normed), or ``final`` (after the last norm). Or
            ``embedding``: the vector that an embeddings endpoint gives, with pooling ``mean``.
        pooling: The state of its ``last`` kept token, the ``mean`` over its kept tokens, or, of
            scores and not of states, the ``max`` of the means over ``window`` consecutive ones. The
            state of a token is the one that has read it. An empty completion is embedded by the
            prompt's last token.
        window: With ``mean``, only the first ``window`` tokens count, >= 1; None takes them all.
            With ``max`` it is needed.
    """

    layer: Source
    pooling: Pooling
    window: int | None = None

    def __str__(self) -> str:
        if self.layer == "embedding":
            return "embedding"
        parts = [self.layer, self.pooling, *([] if self.window is None else [self.window])]
        return "/".join(map(str, parts))

    @classmethod
    def parse(cls, text: str) -> "Reading":
        """Read what ``str`` wrote.

        Raises:
            DatasetError: It is not LAYER/last, LAYER/mean, LAYER/mean/WINDOW, LAYER/max/WINDOW or
                embedding.
        """
        if text == "embedding":
            return EMBEDDING
        found = re.fullmatch(
            r"(final|[1-9]\d*)/(?:(last)|(max)/([1-9]\d*)|mean(?:/([1-9]\d*))?)", text
        )
        if found is None:
            raise DatasetError(
                "reading",
                f"must be LAYER/last, LAYER/mean[/WINDOW], LAYER/max/WINDOW or embedding, got "
                f"{text!r}",
            )
        layer, last, rolling, width, window = found.groups()
        size = width or window
        return cls(
            layer="final" if layer == "final" else int(layer),
            pooling="last" if last else "max" if rolling else "mean",
            window=int(size) if size else None,
        )


EMBEDDING = Reading("embedding", "mean")
