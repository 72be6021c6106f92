"""A few prompts with the answer that a probe chooses, and what it should have, or did not."""

import json
from typing import Any

import numpy as np

from qprobe.data.dataset import Dataset
from qprobe.evaluation.held_out import list_unseen
from qprobe.evaluation.scoring import score, score_confidence
from qprobe.probe.probe import Probe

__all__ = ["pick_examples"]

Json = dict[str, Any]
_MAX_LENGTH = 800
_NUM_EACH = 3


def pick_examples(probe: Probe, dataset: Dataset) -> list[Json]:
    """Return the prompts on which the best by score gains and loses most, as a page shows them.

    The gain is that over the mean of the prompt's samples; prompts without one are left out.

    Args:
        probe: Its terms are stored in the dataset.
        dataset: Loaded whole; only prompts that nothing of the probe was trained on are shown.

    Raises:
        QProbeError: There is no such prompt, or something is not stored.
    """
    unseen = dataset.subset(list_unseen(probe.info, dataset))
    scores = score(probe.terms, unseen)
    rows = [np.flatnonzero(unseen.groups == prompt) for prompt in range(len(unseen.prompts))]
    chosen = [inside[scores[inside].argmax()] for inside in rows]
    gains = np.array(
        [
            unseen.rewards[best] - unseen.rewards[inside].mean()
            for best, inside in zip(chosen, rows, strict=True)
        ]
    )
    telling = [each for each in np.argsort(-gains, kind="stable") if gains[each] != 0]
    picked = telling[:_NUM_EACH] + telling[max(_NUM_EACH, len(telling) - _NUM_EACH) :]
    confidence = score_confidence(probe, unseen)
    examples = []
    for prompt in picked:
        inside, first = rows[prompt], chosen[prompt]
        beside = ("best reward", inside[unseen.rewards[inside].argmax()])
        if unseen.rewards[beside[1]] == unseen.rewards[first]:
            beside = ("worst score", inside[scores[inside].argmin()])
        examples.append(
            {
                "prompt": _shorten(_show_prompt(unseen.prompts[prompt])),
                "answers": [
                    {
                        "name": name,
                        "text": _shorten(unseen.samples[sample].text),
                        "reward": f"{unseen.rewards[sample]:.3f}",
                        "score": f"{scores[sample]:+.2f}",
                        "confidence": "" if confidence is None else f"{confidence[sample]:.2f}",
                    }
                    for name, sample in (("best score", first), beside)
                ],
            }
        )
    return examples


def _show_prompt(row: Json) -> str:
    """Return a row's prompt, or of a chat its last message."""
    given = row.get("messages", row.get("prompt"))
    if isinstance(given, list) and given and isinstance(given[-1], dict):
        given = given[-1].get("content")
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]} ..."
