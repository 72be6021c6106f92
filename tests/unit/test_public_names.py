"""What the packages offer, pinned."""

import subprocess
import sys

import qprobe


def test_public_names() -> None:
    assert qprobe.__all__ == sorted(qprobe.__all__)
    assert all(hasattr(qprobe, name) for name in qprobe.__all__)
    assert qprobe.__all__ == [
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


def test_the_package_is_imported_at_once() -> None:
    """What takes seconds comes with the first name that needs it."""
    code = (
        "import sys, qprobe; "
        "assert not {'torch', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules); "
        "qprobe.train; assert 'torch' in sys.modules; assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
