"""Which problems of a dataset are trained on, and which ones judge."""

from qprobe.data.dataset import Dataset
from qprobe.data.split import has_split, split_prompts
from qprobe.errors import EvaluationError

__all__ = ["split_problems"]


def split_problems(dataset: Dataset, num_test: int) -> tuple[list[int], list[int]]:
    """Return the prompts to train on and those of the test, each ascending.

    Args:
        dataset: Rows with a field ``split`` say it themselves.
        num_test: So many of the last are for the test if they do not.

    Raises:
        EvaluationError: Either side would be empty, or the rows' fields are no split.
    """
    if has_split(dataset.prompts):
        return split_prompts(dataset.prompts, places=dataset.places)
    num_train = len(dataset.prompts) - num_test
    if not 0 < num_train < len(dataset.prompts):
        raise EvaluationError(
            "num_test", f"must be from 1 to {len(dataset.prompts) - 1}, got {num_test!r}"
        )
    return list(range(num_train)), list(range(num_train, len(dataset.prompts)))
