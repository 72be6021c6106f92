"""The probes that a server has loaded, by name."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qprobe import Probe, ProbeFileError, load_probe
from qprobe.probe import Layer
from qprobe_server.errors import StartupError

__all__ = ["ModelFacts", "ProbeRegistry", "ServedProbe"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class ServedProbe:
    """A probe under the name that requests use; ``index`` is what workers call it."""

    name: str
    index: int
    probe: Probe

    def card(self) -> dict[str, Any]:
        """Return the probe's metadata as ``GET /v1/probes`` lists it."""
        info = self.probe.info
        return {
            "id": self.name,
            "object": "probe",
            "base_model": info.base_model,
            "layer": info.layer,
            "pooling": info.pooling,
            "window": info.window,
            "objective": info.objective,
            "k": info.k,
            "beta": info.beta,
            "training": info.training,
            "licence": info.licence,
        }


@dataclass(frozen=True)
class ModelFacts:
    """What the loaded model is, as far as a probe cares.

    Attributes:
        name: The model argument: a hub id or a folder.
        architecture: Class name, for messages.
        hidden_size: Width of its states.
        num_layers: Number of blocks.
        has_inner_layers: Whether its vLLM class can give states of inner layers.
    """

    name: str
    architecture: str
    hidden_size: int
    num_layers: int
    has_inner_layers: bool


class ProbeRegistry:
    """The loaded probes. Fixed once the server has started."""

    def __init__(self) -> None:
        self._probes: dict[str, ServedProbe] = {}

    def load(self, name: str, path: Path) -> None:
        """Read a probe's file and serve it under a name.

        Raises:
            StartupError: The name is taken or not usable, or the file is not a probe that this
                server can score.
        """
        if not _NAME.fullmatch(name):
            raise StartupError(
                f"--probe {name!r}: a name is 1 to 64 letters, digits, '.', '_' or '-', and starts "
                "with a letter or digit"
            )
        if name in self._probes:
            raise StartupError(f"--probe {name!r}: the name is given twice")
        try:
            probe = load_probe(path)
        except ProbeFileError as error:
            raise StartupError(f"--probe {name!r}: {error}") from error
        if not probe.is_linear:
            raise StartupError(
                f"--probe {name!r}: it has {len(probe.layers)} layers; this server scores linear "
                "probes"
            )
        self._probes[name] = ServedProbe(name, len(self._probes), probe)

    def get(self, name: str) -> ServedProbe | None:
        """Return the probe of that name, or None."""
        return self._probes.get(name)

    def names(self) -> list[str]:
        """Return the names in the order of loading."""
        return list(self._probes)

    def probes(self) -> list[ServedProbe]:
        """Return the probes in the order of loading."""
        return list(self._probes.values())

    def inner_layers(self) -> tuple[int, ...]:
        """Return the inner layers that the probes read, each once, in rising order."""
        layers: set[Layer] = {each.probe.info.layer for each in self._probes.values()}
        return tuple(sorted(layer for layer in layers if layer != "final"))

    def check_fit(self, model: ModelFacts, *, allow_model_mismatch: bool) -> None:
        """Check every probe against the model.

        Raises:
            StartupError: A probe does not fit; the message names the probe and the field.
        """
        for served in self._probes.values():
            _check_fit(served, model, allow_model_mismatch=allow_model_mismatch)


def _check_fit(served: ServedProbe, model: ModelFacts, *, allow_model_mismatch: bool) -> None:
    info = served.probe.info
    who = f"probe {served.name!r} does not fit model {model.name!r}"
    if info.hidden_size != model.hidden_size:
        raise StartupError(
            f"{who}: hidden_size is {info.hidden_size}, the model's is {model.hidden_size}"
        )
    if info.num_layers != model.num_layers:
        raise StartupError(
            f"{who}: num_layers is {info.num_layers}, the model's is {model.num_layers}"
        )
    if info.layer != "final" and not model.has_inner_layers:
        raise StartupError(
            f"{who}: it reads layer {info.layer}, and vLLM's class {model.architecture} gives the "
            "'final' layer only"
        )
    # The last part of the name, so that a copy of a hub's model in a folder of its name will do.
    if not allow_model_mismatch and Path(info.base_model).name != Path(model.name).name:
        raise StartupError(
            f"{who}: it was trained on {info.base_model!r}; --allow-model-mismatch serves it anyway"
        )
