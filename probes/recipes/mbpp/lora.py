"""A language model with a LoRA adapter: its tokens, its batches, and what it says of completions.

Weights are frozen, the adapter's are float32. Rows are padded at their end, where no token of
theirs looks, so that attention needs no mask.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from qprobe.errors import TrainingError

__all__ = [
    "Text",
    "add_adapter",
    "add_dtype_flag",
    "check_logprobs",
    "find_device",
    "load_model",
    "make_batches",
    "measure_logprobs",
    "open_tokenizer",
    "read_last_states",
    "tokenize",
]

Json = dict[str, Any]
_RANK, _ALPHA = 16, 32
# As vLLM calls them.
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# Nats a token by which the log-probabilities may differ from the engine's. Kernels in bfloat16
# differ by a hundredth; another template differs by more.
_TOLERANCE = 0.05


@dataclass(frozen=True)
class Text:
    """A prompt and its completion as tokens, neither of them empty."""

    prompt: list[int]
    completion: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


def find_device() -> torch.device:
    """Return the first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def add_dtype_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--dtype``, which ``load_model`` takes."""
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        default="bfloat16",
        help="of the frozen weights; default: bfloat16, which is many times slower on a CPU that "
        "has no instructions for it",
    )


def load_model(name: str, *, has_head: bool, dtype: str) -> PreTrainedModel:
    """Load a model.

    Args:
        name: A hub's ORG/NAME or a folder.
        has_head: With what gives logits, or without.
        dtype: ``bfloat16`` or ``float32``.
    """
    kind = AutoModelForCausalLM if has_head else AutoModel
    return kind.from_pretrained(name, dtype=_DTYPES[dtype]).to(find_device())


def add_adapter(model: PreTrainedModel, *, seed: int) -> PeftModel:
    """Add an adapter to all linear layers but the one that gives logits; it changes nothing yet."""
    torch.manual_seed(seed)
    has_head = model.get_output_embeddings() is not None
    config = LoraConfig(
        r=_RANK,
        lora_alpha=_ALPHA,
        target_modules="all-linear",
        task_type="CAUSAL_LM" if has_head else "FEATURE_EXTRACTION",
    )
    return get_peft_model(model, config)


def open_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a model."""
    return AutoTokenizer.from_pretrained(name)


def tokenize(tokenizer: PreTrainedTokenizerBase, row: Json) -> list[int]:
    """Return the tokens of what a row asks, as vLLM renders them for `qprobe collect`.

    Args:
        tokenizer: Of the model.
        row: Has ``messages``, or ``prompt`` as text.
    """
    if row.get("messages") is None:
        return list(tokenizer.encode(row["prompt"]))
    text = tokenizer.apply_chat_template(
        row["messages"], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer.encode(text, add_special_tokens=False))


def make_batches(texts: Sequence[Text], size: int) -> list[list[int]]:
    """Return places of texts of like length together, the longest first, so many in a batch."""
    order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def measure_logprobs(model: PeftModel, texts: Sequence[Text]) -> Tensor:
    """Return the sum of log-probabilities of each completion: (texts,) float32, in nats.

    Logits are computed where a token of a completion is predicted, and nowhere else.
    """
    ids = _pad(texts)  # (texts, tokens)
    predicts = torch.zeros(len(texts), ids.shape[1] - 1, dtype=torch.bool, device=ids.device)
    for row, each in enumerate(texts):
        predicts[row, len(each.prompt) - 1 : len(each) - 1] = True
    whole = model.get_base_model()
    body, head = getattr(whole, whole.base_model_prefix), whole.get_output_embeddings()
    states = body(input_ids=ids, use_cache=False).last_hidden_state  # (texts, tokens, hidden)
    logits = head(states[:, :-1][predicts]).float()  # (predicted, vocabulary)
    losses = functional.cross_entropy(logits, ids[:, 1:][predicts], reduction="none")
    sums = torch.zeros(len(texts), device=ids.device)
    return sums.index_add(0, predicts.nonzero()[:, 0], -losses)


def read_last_states(model: PeftModel, texts: Sequence[Text]) -> Tensor:
    """Return the final state of each completion's last token: (texts, hidden) float32."""
    ids = _pad(texts)
    states = model(input_ids=ids, use_cache=False).last_hidden_state  # (texts, tokens, hidden)
    ends = torch.tensor([len(each) - 1 for each in texts], device=ids.device)
    last: Tensor = states[torch.arange(len(texts), device=ids.device), ends]
    return last.float()


def check_logprobs(model: PeftModel, texts: Sequence[Text], wanted: Sequence[float]) -> float:
    """Check that the model says of completions what the engine said that sampled them.

    So its template, its tokens and its logits are the engine's.

    Args:
        model: With an adapter that changes nothing yet.
        texts: At least one.
        wanted: The sum of log-probabilities of each, in nats.

    Returns:
        How far the two are apart, in nats a token.

    Raises:
        TrainingError: Further than bfloat16 accounts for.
    """
    with torch.no_grad():
        found = measure_logprobs(model, texts).cpu()
    apart = float((found - torch.tensor(wanted)).abs().sum())
    apart /= sum(len(each.completion) for each in texts)
    if not apart <= _TOLERANCE:
        raise TrainingError(
            "model",
            f"gives the samples other log-probabilities than the dataset has, by {apart:.3f} nats "
            "a token: it must be the model that sampled them, with the same chat template",
        )
    return apart


def _pad(texts: Sequence[Text]) -> Tensor:
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    for row, each in enumerate(texts):
        ids[row, : len(each)] = torch.tensor(each.prompt + each.completion)
    return ids.to(find_device())
