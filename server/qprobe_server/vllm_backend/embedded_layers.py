"""Which layers' states a dataset is made of."""

from collections.abc import Sequence

from qprobe.probe.values import Layer
from qprobe_server.errors import StartupError
from qprobe_server.library.fit import ModelFacts

__all__ = ["choose_embedded_layers", "choose_token_layers"]


def choose_embedded_layers(asked: Sequence[Layer] | None, facts: ModelFacts) -> tuple[Layer, ...]:
    """Return the layers to embed, each once, rising, the final one last.

    Args:
        asked: Of the flag; None takes those at a third, a half, two thirds and five sixths of the
            depth, and the final one.
        facts: Of the model.

    Raises:
        StartupError: The model does not have such a layer, or vLLM does not expose it.
    """
    if asked is None:
        asked = _default_layers(facts.num_layers) if facts.has_inner_layers else ("final",)
    for layer in asked:
        if layer != "final" and not (facts.has_inner_layers and 1 <= layer < facts.num_layers):
            inner = f"1 to {facts.num_layers - 1} or " if facts.has_inner_layers else ""
            raise StartupError(
                f"--layers: must be {inner}'final' for {facts.architecture}, got {layer!r}"
            )
    return tuple(sorted(set(asked), key=lambda each: (each == "final", each)))


def choose_token_layers(asked: Sequence[Layer], layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Return those of the embedded layers that the states of single tokens are wanted of.

    Raises:
        StartupError: One is not embedded.
    """
    for layer in asked:
        if layer not in layers:
            among = ", ".join(map(str, layers))
            raise StartupError(
                f"--token-states: must be among the layers of --layers ({among}), got {layer!r}"
            )
    return tuple(each for each in layers if each in asked)


def _default_layers(num_layers: int) -> tuple[Layer, ...]:
    inner = {max(1, round(num_layers * share)) for share in (1 / 3, 1 / 2, 2 / 3, 5 / 6)}
    return (*sorted(layer for layer in inner if layer < num_layers), "final")
