"""The small model of the tests: for whatever needs numbers, texts and ends, and no quality."""

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qprobe_server.default_model import prepare_default_model

ROOT = Path(__file__).parents[1]
# The first three and the last three of 30 layers; the tokens that were merged first. A token costs
# a sixth of the default model's, a start half as much, and the texts are made of English words.
LAYERS = (0, 1, 2, 27, 28, 29)
VOCABULARY = 8192
EOS = "<|im_end|>"
# Logits along the mean of the final states. EOS: a third of the completions end within 50 tokens.
EOS_LOGIT = 20.0
# White space: far below any other token, else it fills JSON until that is cut off.
BLANK_LOGIT = -10.0
_TEXT = "A volcano is a mountain that opens down to a pool of molten rock. " * 4


@pytest.fixture(scope="session")
def small_model() -> Path:
    """Return the folder of a Llama of 6 layers, cut from the default model; made once.

    Its tokenizer, chat template, hidden size (576) and generation settings are the default
    model's, in float32. It writes nonsense, and ends by itself.
    """
    made_by = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    target = ROOT / "build" / f"small-model-{made_by}"
    if not target.is_dir():
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as work:
            _cut(prepare_default_model(), Path(work))
            shutil.copytree(work, target, dirs_exist_ok=True)
    return target


def _cut(source: Path, target: Path) -> None:
    for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(source / name, target / name)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    (target / "tokenizer.json").write_text(json.dumps(_cut_tokenizer(tokenizer)))
    config = json.loads((source / "config.json").read_text())
    config |= {
        "num_hidden_layers": len(LAYERS),
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "dtype": "float32",
    }
    config.pop("layer_types", None)
    (target / "config.json").write_text(json.dumps(config))
    weights = _cut_weights(load_file(source / "model.safetensors"))
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    _teach(weights, target)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


def _cut_tokenizer(tokenizer: dict[str, Any]) -> dict[str, Any]:
    model = tokenizer["model"]
    model["vocab"] = {text: token for text, token in model["vocab"].items() if token < VOCABULARY}
    model["merges"] = [
        merge
        for merge in model["merges"]
        if (merge.replace(" ", "") if isinstance(merge, str) else "".join(merge)) in model["vocab"]
    ]
    return tokenizer


def _cut_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    kept = {"model.norm.weight": weights["model.norm.weight"].float()}
    for new, old in enumerate(LAYERS):
        prefix = f"model.layers.{old}."
        for name, value in weights.items():
            if name.startswith(prefix):
                kept[f"model.layers.{new}.{name.removeprefix(prefix)}"] = value.float()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        kept[name] = weights["model.embed_tokens.weight"][:VOCABULARY].float()
    return kept


def _teach(weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Give EOS and white space logits that are nearly the same after every token.

    It ends by itself then, and JSON that may hold any white space comes to an end, too.
    """
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = torch.tensor([tokenizer.encode(_TEXT)])
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder)(tokens).last_hidden_state[0]
    mean = states.mean(0)
    direction = mean / mean.square().sum()
    blank = [token for token in range(VOCABULARY) if tokenizer.decode([token]).isspace()]
    weights["lm_head.weight"][blank] = BLANK_LOGIT * direction
    weights["lm_head.weight"][tokenizer.convert_tokens_to_ids(EOS)] = EOS_LOGIT * direction
