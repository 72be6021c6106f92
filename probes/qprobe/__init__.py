"""Q-probes: scoring completions from a model's hidden states, and resampling by the scores.

Owns probes, their files and the resampling rule. Knows nothing of HTTP, vLLM or the server.
"""

from qprobe.artefact import load_probe, parse_probe, save_probe
from qprobe.errors import ProbeFileError, QProbeError, ScoreError
from qprobe.probe import Pooling, Probe, ProbeInfo
from qprobe.resampling import Draw, beta_for_kl, softmax_resample

__all__ = [
    "Draw",
    "Pooling",
    "Probe",
    "ProbeFileError",
    "ProbeInfo",
    "QProbeError",
    "ScoreError",
    "beta_for_kl",
    "load_probe",
    "parse_probe",
    "save_probe",
    "softmax_resample",
]
