"""The probes and layers that a server starts with, as its flags say."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from qprobe import ProbeFileError
from qprobe.probe.values import Layer
from qprobe_server.errors import StartupError
from qprobe_server.library.fit import find_inner_layers, list_inner_layers
from qprobe_server.library.registry import LoadedProbe, read_probe
from qprobe_server.library.store import ProbeStore

__all__ = ["choose_layers", "read_probes"]

_logger = logging.getLogger(__name__)


def read_probes(files: Mapping[str, Path], store: ProbeStore | None) -> list[LoadedProbe]:
    """Read the probes of the ``--probe`` flags, then those that were uploaded before.

    Args:
        files: By name.
        store: Of the uploaded ones, if they are kept.

    Raises:
        StartupError: A name or a file is not valid.
    """
    loaded: dict[str, LoadedProbe] = {}
    for name, path in files.items():
        try:
            loaded[name] = read_probe(name, path.read_bytes())
        except (ProbeFileError, OSError) as error:
            raise StartupError(f"--probe {f'{name}={path}'!r}: {error}") from error
    for each in store.restore() if store is not None else ():
        if each.name in loaded:
            _logger.info("probe %s: the uploaded one takes the place of --probe", each.name)
        loaded[each.name] = each
    return list(loaded.values())


def choose_layers(asked: Sequence[Layer] | None, probes: Sequence[LoadedProbe]) -> tuple[int, ...]:
    """Return the inner layers to expose.

    Args:
        asked: By ``--probe-layers``; None: those that the probes read.
        probes: That the server starts with.

    Raises:
        StartupError: A probe reads one that ``--probe-layers`` leaves out.
    """
    if asked is None:
        return find_inner_layers([each.probe for each in probes])
    inner = tuple(sorted({layer for layer in asked if layer != "final"}))
    for each in probes:
        layer = next((one for one in list_inner_layers(each.probe) if one not in inner), None)
        if layer is not None:
            raise StartupError(
                f"probe {each.name!r} reads layer {layer}, which --probe-layers leaves out"
            )
    return inner
