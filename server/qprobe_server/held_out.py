"""Which prompts of a dataset a probe may be judged on."""

from pathlib import Path

from qprobe import Probe, ProbeInfo
from qprobe.dataset import Dataset
from qprobe.errors import DatasetError

__all__ = ["check_same_model", "list_unseen"]


def check_same_model(info: ProbeInfo, dataset: Dataset) -> None:
    """Check that the model which made the dataset is the probe's.

    Raises:
        DatasetError: It is not.
    """
    model = dataset.manifest["model"]
    if Path(info.base_model).name != Path(model).name:
        raise DatasetError(
            "model", f"is {model!r} in the dataset, {info.base_model!r} in the probe"
        )
    for name in ("hidden_size", "num_layers"):
        there, here = dataset.manifest[name], getattr(info, name)
        if there != here:
            raise DatasetError(name, f"is {there} in the dataset, {here} in the probe")


def list_unseen(probe: Probe, dataset: Dataset) -> list[int]:
    """Return the prompts of a dataset that the probe was not trained on.

    Prompts from the same file have the same numbers, also where they were sampled anew.

    Raises:
        DatasetError: There are none, or they cannot be told.
    """
    training = probe.info.training
    every = list(range(len(dataset.prompts)))
    # A probe made by other means may say nothing of its prompts.
    if (training.get("prompts") or {}).get("sha256") != dataset.manifest["prompts"]["sha256"]:
        return every
    if training.get("num_prompts") != len(every):
        raise DatasetError(
            "num_prompts",
            f"is {len(every)}, and the probe was trained on {training.get('num_prompts')} prompts "
            "of the same file: evaluate on the same number, or on others",
        )
    if not training.get("test_prompts"):
        raise DatasetError(
            "folder", "is what the probe was trained on, all of it: evaluate on other prompts"
        )
    return list(training["test_prompts"])
