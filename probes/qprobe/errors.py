"""The errors of this package.

QProbeError
├── DatasetError     a dataset's folder or one field of it is not valid, or was made in another way
├── EvaluationError  scores, rewards or settings that cannot be evaluated, or a sweep with no result
├── ProbeFileError   a probe's file or one of its fields is not valid
├── PromptFileError  a file of prompts, or one field of a row, is not valid
├── RewardError      a reward cannot be made, or gave no finite number
│   └── SandboxError the machine cannot run code safely; nothing was run
├── RowError         a row lacks what its reward needs, or holds it in the wrong form
├── ScoreError       scores that no choice can be made from
└── TrainingError    a setting or the data given that no probe can be trained with
"""

from pathlib import Path

__all__ = [
    "DatasetError",
    "EvaluationError",
    "ProbeFileError",
    "PromptFileError",
    "QProbeError",
    "RewardError",
    "RowError",
    "SandboxError",
    "ScoreError",
    "TrainingError",
]


class QProbeError(Exception):
    """Root of every error that this package raises on purpose."""


class ProbeFileError(QProbeError):
    """A probe's file, or one field of it, is not valid.

    Attributes:
        field: The offending field (``layer``, ``tensors.0.weight``), or ``file`` for the whole.
        message: What is wrong with it.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class ScoreError(QProbeError):
    """Scores, or the arguments of a choice between them, that no choice can be made from."""


class DatasetError(QProbeError):
    """A dataset's folder, or one field of its manifest, is not valid.

    Attributes:
        field: The offending field, or ``folder`` for the whole.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class TrainingError(QProbeError):
    """A setting, or the features and rewards given, that no probe can be trained with.

    Attributes:
        field: The offending setting or argument (``objective``, ``rewards``).
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class EvaluationError(QProbeError):
    """Scores, rewards or settings that cannot be evaluated, or a sweep without a result.

    Attributes:
        field: The offending argument, such as ``k``, ``beta`` or ``scores``.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class PromptFileError(QProbeError):
    """A file of prompts, or one field of a row, is not valid.

    Attributes:
        path: The file, or the address of a data set.
        line: 1-based number of the line, of the row in a file that has no lines, or None for the
            file as a whole.
        field: The offending field (``messages[0].role``), or ``row`` or ``file`` for the whole.
    """

    def __init__(self, path: Path | str, line: int | None, field: str, message: str) -> None:
        where = str(path) if line is None else f"{path}:{line}"
        super().__init__(f"{where}: {field}: {message}")
        self.path = path
        self.line = line
        self.field = field


class RowError(QProbeError):
    """A row lacks what its reward needs, or holds it in the wrong form.

    Attributes:
        field: The offending field (``tests[2]``).
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class RewardError(QProbeError):
    """A reward cannot be made as asked, or gave no finite number for an answer."""


class SandboxError(RewardError):
    """The machine cannot run code safely, so that nothing was run."""
