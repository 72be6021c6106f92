"""What a score is the sum of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qprobe.errors import ProbeFileError
from qprobe.probe.pooling import LOGPROB_NUMBERS
from qprobe.probe.reading import EMBEDDING, Reading
from qprobe.probe.values import NUMBERS, Layer, Source

__all__ = ["GateTerm", "StateTerm", "Terms"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class StateTerm:
    """w . phi, of one embedding phi of the completion.

    Attributes:
        reading: Which embedding.
        weight: w, shape (hidden,), float32.
    """

    reading: Reading
    weight: Floats


@dataclass(frozen=True, eq=False)
class GateTerm:
    """Sum of sigmoid(g_t) r_t over sum of sigmoid(g_t); g and r are linear in a token's state.

    Source: SWIFT, arXiv 2505.12225.

    Attributes:
        layer: As in ``Reading``.
        segments: As in ``pool_gated``.
        gate, gate_bias: g = gate . h + gate_bias; shape (hidden,), float32.
        value, value_bias: Likewise r.
    """

    layer: Layer
    segments: tuple[int, ...]
    gate: Floats
    value: Floats
    gate_bias: float = 0.0
    value_bias: float = 0.0


@dataclass(frozen=True, eq=False)
class Terms:
    """A score: the sum of these terms and the bias.

    Attributes:
        states: Each of another reading.
        gates: Each of another layer or with other segments.
        numbers: Weight of each number that is read, by its name in ``NUMBERS``.
        bias: Added to the sum.
    """

    states: tuple[StateTerm, ...] = ()
    gates: tuple[GateTerm, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    bias: float = 0.0

    @classmethod
    def linear(cls, reading: Reading, weight: ArrayLike, bias: float = 0.0) -> "Terms":
        """Return w . phi + b of one reading; the weight may be of any shape and kind of array."""
        return cls(states=(StateTerm(reading, to_floats(weight)),), bias=float(bias))

    @property
    def readings(self) -> list[Reading]:
        """What the state terms read, in their order."""
        return [each.reading for each in self.states]

    @property
    def layers(self) -> list[Source]:
        """The layers that are read, each once."""
        read = [each.reading.layer for each in self.states]
        read += [each.layer for each in self.gates]
        return list(dict.fromkeys(read))

    @property
    def reads_logprobs(self) -> bool:
        """Whether it takes the log-probabilities of the tokens."""
        return not LOGPROB_NUMBERS.isdisjoint(self.numbers)

    def describe(self) -> str:
        """Return the terms in words, as reports and tables name them: ``20/mean + numbers``."""
        parts = [*map(str, self.readings)]
        for each in self.gates:
            ends = ",".join(map(str, each.segments))
            parts.append(f"{each.layer}/gate" + (f"/{ends}" if ends else ""))
        if self.numbers:
            every = tuple(self.numbers) == NUMBERS
            parts.append("numbers" if every else f"numbers({','.join(self.numbers)})")
        return " + ".join(parts) or "constant"

    def check(self, place: str, *, hidden_size: int, num_layers: int) -> None:
        """Check every field.

        Args:
            place: What the field's name begins with in an error: where the terms stand in a file,
                such as ``heads.16.terms``, in the order that ``save_probe`` writes.
            hidden_size: Of the states.
            num_layers: Of the model.

        Raises:
            ProbeFileError: A field is not valid; it is named.
        """
        if not (self.states or self.gates or self.numbers):
            raise ProbeFileError(place, "must hold one term at least")
        for index, state in enumerate(self.states):
            at = f"{place}.{index}"
            _check_reading(at, state.reading, num_layers)
            _check_weight(f"{at}.weight", state.weight, hidden_size)
        _check_distinct(place, self.readings)
        for index, gate in enumerate(self.gates, len(self.states)):
            at = f"{place}.{index}"
            _check_layer(at, gate.layer, num_layers)
            _check_segments(at, gate.segments)
            for name in ("gate", "value"):
                _check_weight(f"{at}.{name}", getattr(gate, name), hidden_size)
            for name in ("gate_bias", "value_bias"):
                _check_number(f"{at}.biases", getattr(gate, name), f" as {name}")
        _check_distinct(place, [(each.layer, each.segments) for each in self.gates])
        at = f"{place}.{len(self.states) + len(self.gates)}"
        for name, weight in self.numbers.items():
            if name not in NUMBERS:
                raise ProbeFileError(
                    f"{at}.names", f"must be among {', '.join(NUMBERS)}, got {name!r}"
                )
            _check_number(f"{at}.weight", weight, f" for {name!r}")
        _check_number(f"{place.removesuffix('terms')}bias", self.bias)
        if EMBEDDING in self.readings and self.layers != ["embedding"]:
            raise ProbeFileError(
                place, "read an endpoint's embedding and a model's states, which cannot be had both"
            )


def to_floats(values: ArrayLike) -> Floats:
    """Return a vector as float32 of its own."""
    return np.asarray(values, dtype=np.float32).reshape(-1).copy()


def _check_reading(place: str, reading: Reading, num_layers: int) -> None:
    if reading.layer == "embedding":
        if reading != EMBEDDING:
            raise ProbeFileError(
                f"{place}.pooling", f"must be 'mean', without a window, got {str(reading)!r}"
            )
        return
    _check_layer(place, reading.layer, num_layers)
    if reading.pooling not in ("last", "mean", "max"):
        raise ProbeFileError(
            f"{place}.pooling", f"must be 'last', 'mean' or 'max', got {reading.pooling!r}"
        )
    if reading.window is not None:
        check_count(f"{place}.window", reading.window, also=" or null")
    if reading.window is not None and reading.pooling == "last":
        raise ProbeFileError(f"{place}.window", "goes with pooling 'mean' or 'max' only")
    if reading.window is None and reading.pooling == "max":
        raise ProbeFileError(f"{place}.window", "is needed with pooling 'max'")


def _check_layer(place: str, layer: Source, num_layers: int) -> None:
    if layer == "final":
        return
    check_count(f"{place}.layer", layer, also=" or 'final'")
    assert isinstance(layer, int)
    if layer >= num_layers:
        raise ProbeFileError(
            f"{place}.layer",
            f"must be from 1 to {num_layers - 1} for a model of {num_layers} layers, or 'final' "
            f"for the state after the last norm, got {layer!r}",
        )


def _check_segments(place: str, segments: Sequence[int]) -> None:
    for each in segments:
        check_count(f"{place}.segments", each)
    if list(segments) != sorted(set(segments)):
        raise ProbeFileError(f"{place}.segments", f"must rise, got {list(segments)}")


def _check_weight(place: str, weight: Floats, hidden_size: int) -> None:
    if weight.shape != (hidden_size,):
        raise ProbeFileError(
            f"tensors.{place}", f"must have shape ({hidden_size},), got {weight.shape}"
        )
    if not np.isfinite(weight).all():
        raise ProbeFileError(f"tensors.{place}", "holds a non-finite value")


def _check_number(tensor: str, value: float, which: str = "") -> None:
    if not np.isfinite(value):
        raise ProbeFileError(f"tensors.{tensor}", f"must be finite, got {value!r}{which}")


def _check_distinct(place: str, read: Sequence[object]) -> None:
    for index, each in enumerate(read):
        if each in read[:index]:
            raise ProbeFileError(place, f"must each read something else, got {each} twice")


def check_count(name: str, value: object, *, also: str = "") -> None:
    """Check that a value is an integer >= 1.

    Raises:
        ProbeFileError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ProbeFileError(name, f"must be an integer >= 1{also}, got {value!r}")
