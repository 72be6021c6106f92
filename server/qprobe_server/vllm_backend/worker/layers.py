"""Has the model give the states of inner layers, where vLLM can.

Relies on vLLM 0.32.0: ``SupportsEagle3.set_aux_hidden_state_layers``
(model_executor/models/interfaces.py), ``GPUModelRunner.use_aux_hidden_state_outputs`` of both
runners, which they read at each step and, V2, before it captures graphs; it has to be set after
``load_model``, whose own use of it asserts a speculative method.
"""

from typing import Any

from vllm.distributed.parallel_state import get_pp_group

__all__ = ["expose_layers"]


def expose_layers(runner: Any, layers: list[int]) -> None:
    """Add the outputs of inner layers to those of the model's forward pass.

    Args:
        runner: Of this worker, on the last pipeline stage; its model is loaded.
        layers: Rising.

    Raises:
        ValueError: The layers cannot be had in this configuration.
    """
    drafting = runner.speculative_config
    if runner.use_aux_hidden_state_outputs or (drafting and _reads_states(drafting)):
        raise ValueError(
            f"probes read the inner layers {layers}, but speculative decoding by "
            f"{drafting.method!r} takes vLLM's only output for inner layers itself: use probes of "
            "layer 'final', or another method, such as ngram"
        )
    if runner.parallel_config.use_ubatching:
        raise ValueError(
            f"probes read the inner layers {layers}, which vLLM cannot put together again with "
            "--enable-dbo or --ubatch-size: use probes of layer 'final', or leave that out"
        )
    decoder = _find_decoder(runner.get_model())
    if get_pp_group().world_size > 1 and not getattr(
        decoder, "supports_aux_hidden_states_over_pp", False
    ):
        raise ValueError(
            f"probes read the inner layers {layers}, which vLLM's {type(decoder).__name__} does "
            "not give in a pipeline: use probes of layer 'final'"
        )
    first = int(getattr(decoder, "start_layer", 0))
    if layers[0] <= first:
        raise ValueError(
            f"layer {layers[0]} is not on the last pipeline stage, which begins after layer "
            f"{first}: use probes of later layers or of layer 'final'"
        )
    runner.get_model().set_aux_hidden_state_layers(tuple(layers))
    runner.use_aux_hidden_state_outputs = True


def _reads_states(drafting: Any) -> bool:
    """Whether a speculative method reads the target's states or runs a model of its own on them."""
    return bool(drafting.use_eagle() or drafting.uses_draft_model() or drafting.use_dflash())


def _find_decoder(model: Any) -> Any:
    """Return the EagleModelMixin of a model, as SupportsEagle3 finds it."""
    parent = model.get_language_model() if hasattr(model, "get_language_model") else model
    return getattr(parent, "model", parent)
