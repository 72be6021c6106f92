"""What the packages offer, pinned."""

import qprobe


def test_public_names() -> None:
    assert qprobe.__all__ == sorted(qprobe.__all__)
    assert all(hasattr(qprobe, name) for name in qprobe.__all__)
    assert qprobe.__all__ == [
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
