"""The errors of this package.

QProbeError
├── ProbeFileError   a probe's file or one of its fields is not valid
└── ScoreError       scores that no choice can be made from
"""

__all__ = ["ProbeFileError", "QProbeError", "ScoreError"]


class QProbeError(Exception):
    """Root of every error that this package raises on purpose."""


class ProbeFileError(QProbeError):
    """A probe's file, or one field of it, is not valid.

    Attributes:
        field: The offending field (``layer``, ``tensors.0.weight``), or ``file`` for the whole.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class ScoreError(QProbeError):
    """Scores, or the arguments of a choice between them, that no choice can be made from."""
