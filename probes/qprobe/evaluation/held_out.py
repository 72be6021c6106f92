"""Which prompts of a dataset a probe may be judged on."""

from pathlib import Path

from qprobe.data.dataset import Dataset
from qprobe.data.provenance import SEEN_BY_SCHEDULE, identify_prompts, read_seen
from qprobe.errors import DatasetError
from qprobe.probe.probe import ProbeInfo

__all__ = ["check_same_model", "check_same_sampling", "list_notes", "list_unseen"]


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


def check_same_sampling(info: ProbeInfo, dataset: Dataset) -> None:
    """Check that the dataset has the LoRA adapter and the shots of the probe's, or both have none.

    Raises:
        DatasetError: It has not.
    """
    for name in ("adapter", "shots"):
        there, here = dataset.manifest.get(name), info.training.get(name)
        if there != here:
            raise DatasetError(name, f"is {there!r} in the dataset, {here!r} in the probe")


def list_notes(info: ProbeInfo, dataset: Dataset) -> list[str]:
    """Return what one must know to believe figures of a probe on a dataset, a sentence each.

    Raises:
        ProbeFileError: What the probe says of its prompts cannot be read.
    """
    notes = []
    if not read_seen(info.training):  # made by other means, perhaps
        notes.append("the probe does not say which prompts it was trained on: all count as unseen")
    try:
        check_same_sampling(info, dataset)
    except DatasetError as error:
        notes.append(str(error))
    return notes


def list_unseen(info: ProbeInfo, dataset: Dataset) -> list[int]:
    """Return the prompts of a dataset that nothing of the probe was trained or chosen on.

    They are told by what they ask, whatever file they come from. Of a probe that says nothing of
    its prompts, all are taken for unseen.

    Raises:
        DatasetError: There are none.
        ProbeFileError: What the probe says of its prompts cannot be read.
    """
    seen = read_seen(info.training) | read_seen(info.training, SEEN_BY_SCHEDULE)
    asked = identify_prompts(dataset.prompts)
    unseen = [index for index, each in enumerate(asked) if each not in seen]
    if not unseen:
        raise DatasetError(
            "folder", "is what the probe was trained on, all of it: evaluate on other prompts"
        )
    return unseen
