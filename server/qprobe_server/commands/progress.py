"""The bar that a collection shows."""

from collections.abc import Sequence

from tqdm import tqdm

from qprobe.data.writer import DatasetWriter

__all__ = ["Bar", "open_bar"]


class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """Shows the engine's steps too: all running samples get a token in each."""

    num_steps = 0

    def advance(self, num_samples: int) -> None:
        """Add samples that have ended; 0 stands for a step."""
        if not num_samples:
            self.num_steps += 1
            self.set_postfix_str(f"step {self.num_steps}", refresh=False)
        self.update(num_samples)


def open_bar(writer: DatasetWriter, counts: Sequence[int]) -> Bar:
    """Return a bar of all samples, which begins behind those that are there.

    Args:
        writer: Of the dataset.
        counts: Samples of each prompt.
    """
    total = sum(counts)
    missing = sum(
        counts[prompt] for shard in writer.missing() for prompt in writer.prompts_of(shard)
    )
    return Bar(total=total, initial=total - missing, unit="sample", miniters=0, mininterval=1)
