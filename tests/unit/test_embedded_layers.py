from typing import Any

import pytest

from qprobe_server.errors import StartupError
from qprobe_server.library.fit import ModelFacts
from qprobe_server.vllm_backend.embedded_layers import choose_embedded_layers, choose_token_layers


def make_facts(num_layers: int, *, has_inner_layers: bool = True) -> ModelFacts:
    return ModelFacts(
        name="model",
        architecture="Some",
        hidden_size=8,
        num_layers=num_layers,
        has_inner_layers=has_inner_layers,
        logprobs_mode="raw_logprobs",
    )


@pytest.mark.parametrize(
    ("num_layers", "layers"),
    [
        (24, (8, 12, 16, 20, "final")),
        (3, (1, 2, "final")),
        (1, ("final",)),
    ],
)
def test_by_default_layers_are_spread_over_the_depth(num_layers: int, layers: Any) -> None:
    assert choose_embedded_layers(None, make_facts(num_layers)) == layers


def test_by_default_a_model_without_inner_layers_gives_its_final_one() -> None:
    facts = make_facts(24, has_inner_layers=False)
    assert choose_embedded_layers(None, facts) == ("final",)


def test_layers_are_taken_once_and_rising() -> None:
    assert choose_embedded_layers(["final", 5, 2, 5], make_facts(24)) == (2, 5, "final")


@pytest.mark.parametrize(
    ("layer", "has_inner_layers", "said"),
    [
        (0, True, "1 to 23 or 'final' for Some, got 0"),
        (24, True, "1 to 23 or 'final' for Some, got 24"),
        (8, False, "must be 'final' for Some, got 8"),
    ],
)
def test_a_layer_that_is_not_given_is_refused(
    layer: int, *, has_inner_layers: bool, said: str
) -> None:
    with pytest.raises(StartupError, match=said):
        choose_embedded_layers([layer], make_facts(24, has_inner_layers=has_inner_layers))


def test_states_of_tokens_are_of_embedded_layers() -> None:
    assert choose_token_layers(["final", 2], (2, 5, "final")) == (2, "final")
    with pytest.raises(StartupError, match=r"layers of --layers \(2, 5, final\), got 3"):
        choose_token_layers([2, 3], (2, 5, "final"))
