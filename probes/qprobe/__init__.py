"""Q-probes: scoring completions from a model's hidden states, and resampling by the scores.

Owns probes, datasets, rewards, training and evaluation. Knows nothing of HTTP, vLLM or the server.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from qprobe.errors import ProbeFileError, QProbeError, ScoreError

if TYPE_CHECKING:
    from qprobe.data.dataset import Dataset
    from qprobe.probe.file import load_probe, parse_probe, save_probe
    from qprobe.probe.probe import Probe, ProbeInfo
    from qprobe.probe.reading import Reading
    from qprobe.probe.resampling import Draw, beta_for_kl, softmax_resample
    from qprobe.probe.terms import Terms
    from qprobe.probe.values import Pooling
    from qprobe.reports.evaluate import evaluate
    from qprobe.training.fit import TrainingSettings
    from qprobe.training.recipe import train

__all__ = [
    "Dataset",
    "Draw",
    "Pooling",
    "Probe",
    "ProbeFileError",
    "ProbeInfo",
    "QProbeError",
    "Reading",
    "ScoreError",
    "Terms",
    "TrainingSettings",
    "beta_for_kl",
    "evaluate",
    "load_probe",
    "parse_probe",
    "save_probe",
    "softmax_resample",
    "train",
]

# Imported when they are first asked for: torch takes seconds, which no command line may cost that
# only wants to say what is wrong with it.
_HOMES = {
    "data.dataset": ("Dataset",),
    "probe.reading": ("Reading",),
    "probe.file": ("load_probe", "parse_probe", "save_probe"),
    "probe.probe": ("Probe", "ProbeInfo"),
    "probe.terms": ("Terms",),
    "probe.values": ("Pooling",),
    "probe.resampling": ("Draw", "beta_for_kl", "softmax_resample"),
    "reports.evaluate": ("evaluate",),
    "training.fit": ("TrainingSettings",),
    "training.recipe": ("train",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:  # noqa: ANN401  # any public name (PEP 562)
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
