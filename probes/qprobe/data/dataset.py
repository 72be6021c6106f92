"""A dataset in memory: prompts with rewarded samples; their embeddings are read when asked for."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qprobe.data.folder import read_folder, tokens_name
from qprobe.data.named_rewards import apply_rewards
from qprobe.data.provenance import identify_prompts
from qprobe.data.sample import GREEDY, Sample
from qprobe.errors import DatasetError, EvaluationError
from qprobe.probe.pooling import LOGPROB_NUMBERS, read_numbers
from qprobe.probe.reading import Reading
from qprobe.probe.values import NUMBERS, Source

__all__ = ["GREEDY", "Dataset", "Reading", "Sample"]

Json = dict[str, Any]


class Dataset:
    """A finished dataset, or some prompts of one.

    Attributes:
        manifest: How it was made.
        prompts: The rows.
        samples: In order of prompt and index, the greedy ones left out.
        groups: Shape (samples,): the prompt of each.
        rewards: Shape (samples,), float64.
        greedy_rewards: Shape (prompts,): of the greedy answer, NaN where there is none.
        places: Where each prompt's row is, for an error: ``data/prompts.jsonl:3``.
        num_unrewarded: Samples that were left out, as they have no reward.
        num_refused: Prompts that the API refused that was to sample them, or what was to read their
            answers; they have no samples.
        digest: Names the whole dataset's content; "" for one that was not loaded.
    """

    num_unrewarded = 0
    num_refused = 0
    # The rows of the stored embeddings that are these samples; None: all.
    _rows: NDArray[np.int64] | None = None

    def __init__(
        self,
        manifest: Json,
        prompts: list[Json],
        samples: list[Sample],
        embeddings: Mapping[Reading, Tensor],
        greedy_rewards: NDArray[np.float64],
        *,
        digest: str = "",
        places: Sequence[str] | None = None,
        tokens: Mapping[Source, Callable[[int], Tensor]] | None = None,
    ) -> None:
        self.manifest = manifest
        self.prompts = prompts
        self.samples = samples
        self._embeddings = embeddings  # (stored samples, hidden) float16 each
        # By layer, from a stored sample's number to its states, (tokens, hidden) float16.
        self._tokens = dict(tokens or {})
        self.greedy_rewards = greedy_rewards
        self.digest = digest
        self.places = list(places or (f"row {row + 1}" for row in range(len(prompts))))
        self.groups: NDArray[np.int64] = np.array([each.prompt for each in samples], dtype=np.int64)
        self.rewards: NDArray[np.float64] = np.array([each.reward for each in samples], np.float64)

    @classmethod
    def load(cls, folder: Path | str, *, reward_name: str | None = None) -> "Dataset":
        """Read a finished dataset; samples without a reward are left out.

        Args:
            folder: Of the dataset.
            reward_name: Of a reward that was added to it; None takes the one collected.

        Raises:
            DatasetError: There is no such dataset or reward, it is not finished, or a file is not
                the one written.
        """
        folder = Path(folder)
        stored = read_folder(folder)
        manifest, digest = stored.manifest, stored.digest
        every = [each for shard in stored.shards.values() for each in shard]
        if reward_name is not None:
            manifest, every, digest = apply_rewards(folder, stored, reward_name)
        greedy = np.full(len(stored.prompts), np.nan)
        for each in every:
            if each.index == GREEDY and each.reward is not None:
                greedy[each.prompt] = each.reward
        embedded = [each for each in every if each.index != GREEDY]
        rows = [row for row, each in enumerate(embedded) if each.reward is not None]
        made = cls(
            manifest,
            stored.prompts,
            [embedded[row] for row in rows],
            stored.embeddings,
            greedy,
            digest=digest,
            places=[f"{folder / 'prompts.jsonl'}:{n}" for n in range(1, len(stored.prompts) + 1)],
            tokens=stored.tokens,
        )
        made._rows = np.array(rows, dtype=np.int64)
        made.num_unrewarded = len(embedded) - len(rows)
        made.num_refused = len(stored.prompts) - len({each.prompt for each in every})
        return made

    @property
    def readings(self) -> list[Reading]:
        """The embeddings that are stored."""
        return list(self._embeddings)

    @property
    def token_layers(self) -> list[Source]:
        """The layers that the states of single tokens are stored of."""
        return list(self._tokens)

    @cached_property
    def questions(self) -> NDArray[np.int64]:
        """What each prompt asks, numbered from 0: (prompts,). Rows that ask the same share one."""
        asked = identify_prompts(self.prompts)
        numbers = {each: number for number, each in enumerate(dict.fromkeys(asked))}
        return np.array([numbers[each] for each in asked], dtype=np.int64)

    @property
    def num_samples(self) -> NDArray[np.int64]:
        """How many samples each prompt has: (prompts,)."""
        return np.bincount(self.groups, minlength=len(self.prompts))

    def settle_k(self, k: int | None, *, default: int) -> int:
        """Return how many samples of a prompt a choice is among, checked.

        Args:
            k: As it was asked for, or None.
            default: Taken then, if every prompt has so many samples; else as many as all have.

        Raises:
            EvaluationError: k is not from 1 to the fewest samples of a prompt, or would be 1, which
                is no choice, without having been asked for.
        """
        place = int(self.num_samples.argmin())
        fewest = int(self.num_samples[place])
        if not fewest:
            raise EvaluationError("samples", f"of {self.places[place]} are none with a reward")
        if k is None and default > 1 and fewest == 1:
            raise EvaluationError(
                "k",
                f"would be 1, and no choice, as {self.places[place]} has one sample only: leave "
                "such prompts out (--min-samples), or ask for 1",
            )
        settled = min(default, fewest) if k is None else k
        if not 1 <= settled <= fewest:
            which = f" ({self.places[place]})" if fewest < self.num_samples.max() else ""
            raise EvaluationError(
                "k",
                f"must be from 1 to {fewest}, the fewest samples of a prompt{which}, got "
                f"{settled!r}",
            )
        return settled

    def require(self, readings: Iterable[Reading], token_layers: Iterable[Source] = ()) -> None:
        """Check that embeddings are stored, before minutes go into the first.

        Args:
            readings: Which.
            token_layers: Those that the states of single tokens are needed of.

        Raises:
            DatasetError: One is not; the message says which are.
        """
        for reading in readings:
            if reading not in self._embeddings:
                stored = ", ".join(map(str, self._embeddings))
                raise DatasetError(
                    "reading", f"{str(reading)!r} is not in the dataset, which has {stored}"
                )
        for layer in token_layers:
            if layer not in self._tokens:
                stored = ", ".join(map(tokens_name, self._tokens)) or "none"
                raise DatasetError(
                    tokens_name(layer),
                    f"are not in the dataset, which has {stored}: `qprobe collect --token-states "
                    f"{layer}` keeps the states of single tokens",
                )

    def numbers(
        self, names: Sequence[str] = NUMBERS, *, tokens: int | None = None
    ) -> NDArray[np.float64]:
        """Return numbers of all samples: (samples, names), as a server reads them.

        Args:
            names: Of ``NUMBERS``.
            tokens: Of the first so many tokens of each, and not of the whole.

        Raises:
            DatasetError: Log-probabilities are asked for that the dataset does not have, or an
                embeddings endpoint has read the answers: it tells of no tokens, also when served.
        """
        if self.manifest.get("endpoint") is not None:
            raise DatasetError(
                "numbers",
                "are not known of answers that an embeddings endpoint reads: leave them out",
            )
        rows = []
        for each in self.samples:
            length = len(each.token_ids)
            cut = each.finish_reason == "length"
            if tokens is not None:
                length, cut = min(length, tokens), cut or length > tokens
            logprob = each.sum_logprobs(tokens)
            if logprob is None and not LOGPROB_NUMBERS.isdisjoint(names):
                of = "" if tokens is None else f" after {tokens} tokens"
                raise DatasetError(
                    "logprob",
                    f"is not known{of} of sample {each.index} of {self.places[each.prompt]}: leave "
                    f"{' and '.join(sorted(LOGPROB_NUMBERS))} out",
                )
            found = read_numbers(logprob=logprob or 0.0, length=length, cut=cut)
            rows.append([found[name] for name in names])
        return np.array(rows, dtype=np.float64).reshape(len(self.samples), len(names))

    def features(self, reading: Reading) -> Tensor:
        """Return an embedding of all samples: (samples, hidden), float32. Reads it from disk.

        Raises:
            DatasetError: It is not stored (the message says which are), or not finite.
        """
        values = self.embeddings_of(reading).float()
        finite = torch.isfinite(values).all(1)
        if not bool(finite.all()):
            sample = self.samples[int((~finite).nonzero()[0])]
            raise DatasetError(
                str(reading),
                f"is not finite for sample {sample.index} of {self.places[sample.prompt]}",
            )
        return values

    def embeddings_of(self, reading: Reading) -> Tensor:
        """Return an embedding of all samples as it is stored: (samples, hidden), float16."""
        self.require([reading])
        found = self._embeddings[reading]
        return found if self._rows is None else found[torch.from_numpy(self._rows)]

    def token_states(self, layer: Source, rows: Iterable[int] | None = None) -> Iterator[Tensor]:
        """Yield the states of a sample's tokens, sample by sample, each read from disk by then.

        Args:
            layer: Of the model.
            rows: Which of the samples, in the order wanted; None: all.

        Yields:
            Shape (tokens, hidden), float16: of the ``num_states`` tokens that make its embedding.

        Raises:
            DatasetError: They are not stored.
        """
        self.require((), [layer])
        read = self._tokens[layer]
        for row in range(len(self.samples)) if rows is None else rows:
            yield read(row if self._rows is None else int(self._rows[row]))

    def subset(self, prompts: Sequence[int]) -> "Dataset":
        """Return the dataset of some prompts, numbered anew in the order given."""
        places = {old: new for new, old in enumerate(prompts)}
        kept = np.concatenate(
            [np.zeros(0, np.int64), *(np.flatnonzero(self.groups == old) for old in prompts)]
        )
        samples = [replace(self.samples[i], prompt=places[self.samples[i].prompt]) for i in kept]
        made = Dataset(
            self.manifest,
            [self.prompts[old] for old in prompts],
            samples,
            self._embeddings,
            self.greedy_rewards[list(prompts)],
            digest=self.digest,
            places=[self.places[old] for old in prompts],
            tokens=self._tokens,
        )
        made._rows = kept if self._rows is None else self._rows[kept]
        return made
