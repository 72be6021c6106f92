"""The recipe on a code model: what is trained on, how an adapter is trained, what a table says."""

import argparse
import importlib
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qprobe.data.dataset import Dataset, Reading, Sample
from qprobe.data.prompts import read_prompts
from qprobe.data.writer import DatasetWriter
from qprobe.errors import DatasetError, EvaluationError, TrainingError

Json = dict[str, Any]
RECIPE = Path(__file__).parents[2] / "probes" / "recipes" / "mbpp"
WORDS = ["<end>", "<user>", "<answer>", *"abcdefghij"]
TEMPLATE = (
    "{% for m in messages %}<user> {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}<answer>{% endif %}"
)
N = 4


@pytest.fixture(autouse=True)
def _on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other, as Python has it of a script's own folder."""
    monkeypatch.syspath_prepend(str(RECIPE))


def load(name: str) -> Any:
    return importlib.import_module(name)


def make_dataset(num_prompts: int = 6, **manifest: Any) -> Dataset:
    """Of every prompt: two right samples of the same text, another right one, a wrong one."""
    rows: list[Json] = [
        {"messages": [{"role": "user", "content": "abcdef"[at % 6]}]} for at in range(num_prompts)
    ]
    texts = ["a b", "a b", "a c", "d"]
    samples = [
        Sample(
            prompt=prompt,
            index=index,
            text=text,
            token_ids=[*(WORDS.index(word) for word in text.split()), 0],
            num_scored=len(text.split()),
            logprob=-1.0,
            finish_reason="stop",
            seed=0,
            reward=float(text != "d"),
        )
        for prompt in range(num_prompts)
        for index, text in enumerate(texts)
    ]
    reading = Reading(1, "mean")
    states = torch.randn(len(samples), 3, generator=torch.Generator().manual_seed(0)).half()
    greedy = np.ones(num_prompts)
    return Dataset(
        {"readings": [str(reading)], **manifest}, rows, samples, {reading: states}, greedy
    )


def test_problems_are_shuffled_and_the_last_are_for_the_test() -> None:
    prompts = load("prompts")
    given = [{"task_id": task, "split": "prompt"} for task in range(20)]
    made = prompts.order_problems(given, num_test=5, seed=0)
    assert sorted(row["task_id"] for row in made) == list(range(20))
    assert [row["task_id"] for row in made] != list(range(20))
    assert [row["split"] for row in made] == ["train"] * 15 + ["test"] * 5
    assert made == prompts.order_problems(given, num_test=5, seed=0)
    assert "split" not in prompts.order_problems(given, num_test=0, seed=0)[0]
    with pytest.raises(ValueError, match="from 0 to 19, got 20"):
        prompts.order_problems(given, num_test=20, seed=0)


def test_the_last_problems_are_the_test_unless_the_rows_say_otherwise() -> None:
    split = load("splitting").split_problems
    dataset = make_dataset()
    assert split(dataset, 2) == ([0, 1, 2, 3], [4, 5])
    for at, row in enumerate(dataset.prompts):
        row["split"] = "test" if at in (0, 3) else "train"
    assert split(dataset, 2) == ([1, 2, 4, 5], [0, 3])
    with pytest.raises(EvaluationError, match="from 1 to 5, got 6"):
        split(make_dataset(), 6)


def test_samples_are_chosen_of_training_problems_and_of_different_texts() -> None:
    choose = load("pairs").choose
    made = choose(make_dataset(), [1, 2], per_prompt=2, seed=0)
    assert [row["place"] for row in made.solutions] == [0, 0, 1, 1]
    assert {row["completion"] for row in made.solutions} == {"a b", "a c"}
    assert {row["messages"][0]["content"] for row in made.solutions} == {"b", "c"}
    assert [row["rejected"]["completion"] for row in made.pairs] == ["d"] * 4
    assert [row["reward"] for row in made.rewarded] == [1, 0, 1, 0]
    assert made.solutions[0]["token_ids"][-1] == 0
    with pytest.raises(DatasetError, match="adapter"):
        choose(make_dataset(adapter={"name": "sft"}), [0], per_prompt=1, seed=0)


def test_solutions_serve_as_shots(tmp_path: Path) -> None:
    made = load("pairs").choose(make_dataset(), [0, 1], per_prompt=2, seed=0)
    path = tmp_path / "solutions.jsonl"
    path.write_text("\n".join(map(json.dumps, made.solutions)))
    rows = read_prompts(path, needs_completions=True)
    assert [len(row.completions) for row in rows] == [2, 2]
    assert {each.reward for row in rows for each in row.completions} == {1.0}
    assert isinstance(rows[0].prompt, list)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return the folder of a random Llama with a chat template; its states differ widely."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=len(WORDS),
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    folder = tmp_path / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<end>"))
    words.pre_tokenizer = Whitespace()
    words.add_special_tokens(WORDS[:3])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def settle(model: Path, **changes: Any) -> argparse.Namespace:
    given: Json = {"model": str(model), "batch": 3, "seed": 0, "beta": 0.1, "dtype": "bfloat16"}
    return argparse.Namespace(**(given | changes))


def find_logprob(
    model: Path, prompt: list[int], completion: list[int], dtype: str = "bfloat16"
) -> float:
    """Return what the whole model says, in the plainest way."""
    plain = LlamaForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    with torch.no_grad():
        logits = plain(torch.tensor([prompt + completion])).logits[0].float().log_softmax(-1)
    places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
    return float(sum(logits[at, token] for at, token in zip(places, completion, strict=True)))


def with_true_logprobs(model: Path, rows: list[Json]) -> list[Json]:
    """Return rows with what the model says of their completions."""
    lora = load("lora")
    tokenizer = lora.open_tokenizer(str(model))
    for row in rows:
        asked = lora.tokenize(tokenizer, row)
        for each in (row, row.get("chosen"), row.get("rejected")):
            if each and "token_ids" in each:
                each["logprob"] = find_logprob(model, asked, each["token_ids"])
    return rows


def test_a_chat_is_rendered_up_to_where_the_answer_begins(model: Path) -> None:
    lora = load("lora")
    tokenizer = lora.open_tokenizer(str(model))
    tokens = lora.tokenize(tokenizer, {"messages": [{"role": "user", "content": "b c"}]})
    assert [WORDS[each] for each in tokens] == ["<user>", "b", "c", "<answer>"]
    assert lora.tokenize(tokenizer, {"prompt": "b c"}) == [WORDS.index("b"), WORDS.index("c")]


def test_batches_hold_every_text_once_and_like_lengths_together() -> None:
    lora = load("lora")
    texts = [lora.Text([1] * length, [1]) for length in (5, 1, 9, 2, 8, 4, 7)]
    batches = lora.make_batches(texts, 3)
    assert batches == [[2, 4, 6], [0, 5, 3], [1]]


@pytest.mark.parametrize(("dtype", "precision"), [("bfloat16", 2**-8), ("float32", 2**-20)])
def test_logprobs_are_those_of_the_whole_model_whatever_stands_beside(
    model: Path, dtype: str, precision: float
) -> None:
    """Sums of up to 4 tokens, each good to the precision of its logits, which are below 4."""
    lora = load("lora")
    texts = [lora.Text([1, 3, 2], [4, 0]), lora.Text([1, 5, 6, 7, 2], [8, 9, 3, 0])]
    tuned = lora.add_adapter(lora.load_model(str(model), has_head=True, dtype=dtype), seed=0)
    with torch.no_grad():
        found = lora.measure_logprobs(tuned, texts).tolist()
    wanted = [find_logprob(model, each.prompt, each.completion, dtype) for each in texts]
    assert found == pytest.approx(wanted, abs=4 * 4 * precision)
    assert lora.check_logprobs(tuned, texts, wanted) < 0.05
    with pytest.raises(TrainingError, match="same chat template"):
        lora.check_logprobs(tuned, texts, [each - 1 for each in wanted])


@pytest.mark.parametrize("method", ["sft", "dpo", "reward"])
def test_an_adapter_learns_and_can_be_read_again(model: Path, method: str, tmp_path: Path) -> None:
    """What was raised is higher afterwards; the frozen weights are as they were."""
    tune = load("tune")
    chosen = load("pairs").choose(make_dataset(), [0, 1, 2, 3], per_prompt=2, seed=0)
    rows = with_true_logprobs(
        model, {"sft": chosen.solutions, "dpo": chosen.pairs}.get(method, chosen.rewarded)
    )
    task = getattr(tune, f"make_{method}")(rows, settle(model))
    assert {each.dtype for each in task.parameters} == {torch.float32}
    frozen = {n: p.clone() for n, p in task.model.named_parameters() if not p.requires_grad}
    everything = list(range(len(rows)))
    with torch.no_grad():
        before = task.loss(everything).item()
    if method == "dpo":  # no pair is above the reference's margin yet, up to bfloat16
        assert before == pytest.approx(len(rows) * math.log(2), rel=0.02)
    losses = tune.train(task, epochs=12, lr=2e-2, num_tokens=20, seed=0)
    assert len(losses) == 12 * len(task.batches)
    with torch.no_grad():
        after = task.loss(everything).item()
    assert after < 0.7 * before
    assert all(torch.equal(p, frozen[n]) for n, p in task.model.named_parameters() if n in frozen)
    task.save(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (16, 32)
    assert not any("lm_head" in each for each in config["target_modules"])


def test_parts_of_a_batch_add_up_to_it(model: Path) -> None:
    """So that ``--tokens`` bounds the memory and nothing else; in bfloat16."""
    tune = load("tune")
    chosen = load("pairs").choose(make_dataset(), [0, 1, 2], per_prompt=2, seed=0).pairs
    task = tune.make_dpo(with_true_logprobs(model, chosen), settle(model))
    places = task.batches[0]
    parts = task.divide(places, max(task.lengths))
    assert [len(each) for each in parts] == [1] * len(places)
    assert [len(each) for each in task.divide(places, 2 * max(task.lengths))] == [2, 1]
    with torch.no_grad():
        assert sum(task.loss(each).item() for each in parts) == pytest.approx(
            task.loss(places).item(), rel=1e-2
        )


def test_the_command_writes_an_adapter_and_tells_what_it_took(model: Path, tmp_path: Path) -> None:
    """Of the first training problems only, if so asked."""
    chosen = load("pairs").choose(make_dataset(), [0, 1, 2], per_prompt=1, seed=0).solutions
    rows = with_true_logprobs(model, chosen)
    path = tmp_path / "solutions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    given = ["sft", str(path), "--model", str(model), "-o", str(tmp_path / "sft")]
    load("tune").main(
        [*given, "--prompts", "2", "--epochs", "3", "--batch", "1", "--dtype", "float32"]
    )
    told = json.loads((tmp_path / "sft" / "training.json").read_text())
    assert (told["method"], told["num_prompts"], told["num_rows"]) == ("sft", 2, 2)
    assert len(told["losses"]) == 6
    assert told["dtype"] == "float32"
    assert told["cpu_seconds"] > 0
    assert (tmp_path / "sft" / "adapter_model.safetensors").stat().st_size > 0


def test_a_merged_model_is_the_adapter_s(model: Path, tmp_path: Path) -> None:
    """In log-probabilities, up to bfloat16; with the template and the defaults of sampling."""
    tune, lora = load("tune"), load("lora")
    (model / "generation_config.json").write_text(json.dumps({"temperature": 0.3}))
    chosen = load("pairs").choose(make_dataset(), [0, 1, 2, 3], per_prompt=2, seed=0).solutions
    task = tune.make_sft(with_true_logprobs(model, chosen), settle(model))
    tune.train(task, epochs=12, lr=2e-2, num_tokens=99, seed=0)
    task.save(tmp_path / "sft")
    merged = tmp_path / "merged"
    load("merge").main([str(tmp_path / "sft"), "--model", str(model), "-o", str(merged)])
    text = lora.Text([1, 3, 2], [3, 4, 0])
    with torch.no_grad():
        wanted = lora.measure_logprobs(task.model, [text]).item()
    assert find_logprob(merged, text.prompt, text.completion) == pytest.approx(wanted, abs=0.15)
    assert abs(find_logprob(model, text.prompt, text.completion) - wanted) > 1
    tokenizer = lora.open_tokenizer(str(merged))
    row: Json = {"messages": [{"role": "user", "content": "a"}]}
    assert lora.tokenize(tokenizer, row) == lora.tokenize(lora.open_tokenizer(str(model)), row)
    assert json.loads((merged / "generation_config.json").read_text())["temperature"] == 0.3


def test_a_reward_model_scores_a_dataset(model: Path, tmp_path: Path) -> None:
    """By the head that was trained: right answers above wrong ones, equal texts alike."""
    tune, score = load("tune"), load("score")
    dataset = make_dataset()
    rows = load("pairs").choose(dataset, [0, 1, 2, 3], per_prompt=3, seed=0).rewarded
    task = tune.make_reward(rows, settle(model))
    tune.train(task, epochs=30, lr=2e-2, num_tokens=99, seed=0)
    task.save(tmp_path / "reward")
    scores = score.score_samples(
        dataset,
        [4, 5],
        model=str(model),
        reward=tmp_path / "reward",
        batch=2,
        dtype="bfloat16",
    )
    assert np.isnan(scores[: 4 * N]).all()
    first, same, other, wrong = scores[4 * N : 5 * N]
    assert first == same
    assert min(first, other) > wrong
    with torch.no_grad():
        states = load("lora").read_last_states(
            task.model,
            [load("lora").Text([1, 3 + 4, 2], dataset.samples[4 * N + 3].token_ids)],
        )
        assert wrong == pytest.approx(task.head(states).item(), abs=0.1)


def write_study(folder: Path) -> None:
    """Write 60 problems of 4 samples; the first feature says which are right, save for noise."""
    rng = np.random.default_rng(0)
    prompts = [{"prompt": f"p{at}"} for at in range(60)]
    states = rng.normal(size=(60, N, 4))
    rewards = (states[..., 0] + 0.3 * rng.normal(size=(60, N)) > 0).astype(float)
    test = list(range(36, 60))

    def write(name: str, order: list[int]) -> None:
        manifest = {
            "readings": ["1/mean"],
            "num_prompts": len(order),
            "prompts_per_shard": len(order),
            "model": "tiny",
            "hidden_size": 4,
            "num_layers": 2,
            "sampling": {"n": N},
        }
        samples = [
            Sample(
                prompt=place,
                index=index,
                text=f"{old} {index}",
                token_ids=[1] * (2 + index),
                num_scored=1,
                logprob=float(-(states[old, index, 1] ** 2)),
                finish_reason="stop",
                seed=0,
                reward=rewards[old, max(index, 0)],
            )
            for place, old in enumerate(order)
            for index in range(-1, N)
        ]
        kept = torch.tensor(states[order].reshape(-1, 4)).half()
        rows = [prompts[old] for old in order]
        with DatasetWriter(folder / name, manifest, rows) as writer:
            writer.write(0, samples, {"1/mean": kept})
            writer.finish()

    for name in ("mbpp", "humaneval", "mbpp-read"):
        write(name, list(range(60)))
    for name in ("mbpp-shots", "mbpp-sft", "mbpp-sft-10", "mbpp-dpo"):
        write(name, test[::-1])
    (folder / "reward").mkdir()
    whole = Dataset.load(folder / "mbpp")
    scores = [
        reward if group in test else None
        for reward, group in zip(whole.rewards, whole.groups.tolist(), strict=True)
    ]
    stored = json.dumps({"dataset": whole.digest, "scores": scores})
    (folder / "reward" / "mbpp.json").write_text(stored)
    (folder / "sft").mkdir()
    (folder / "sft" / "adapter_model.safetensors").write_bytes(b"x" * 3000)
    told = {"num_prompts": 32, "num_rows": 64, "epochs": 2, "seconds": 12.0, "cpu_seconds": 24.0}
    (folder / "sft" / "training.json").write_text(json.dumps({**told, "machine": "a desk"}))


def read_rows(text: str, heading: str) -> dict[str, list[str]]:
    """Return the rows of a heading's tables by their first cells that name them."""
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows: dict[str, list[str]] = {}
    for line in section.splitlines():
        if line.startswith("| "):
            cells = [each.strip() for each in line.strip("|").split("|")]
            name = f"{cells[0]}: {cells[1]}" if heading.startswith("Other") else cells[0]
            rows.setdefault(name, cells)
    return rows


def test_tables_of_a_study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sets that are copies of the zero-shot samples earn the same; a perfect score, the ceiling."""
    write_study(tmp_path)
    monkeypatch.setattr(load("ways"), "NUM_FOLDS", 2)  # eight take four times as long
    load("tables").main([str(tmp_path), "--k", "4", "--num-test", "24", "--vote", "text"])
    text = capsys.readouterr().out
    mbpp = read_rows(text, "MBPP")
    assert mbpp["base: one sample"][2] == "0%"
    assert mbpp["ceiling: best by reward"][2] == "100%"
    # No two texts are the same.
    assert mbpp["vote by text, all alike"][1] == mbpp["base: one sample"][1]
    assert mbpp["vote by text, by states and five numbers, ce"][1] != mbpp["base: one sample"][1]
    assert float(mbpp["states, ce"][2].rstrip("%")) > 60
    assert {"states, pg", "five numbers, ce", "states and five numbers, bt"} <= mbpp.keys()
    assert "states, ce" in read_rows(text, "HumanEval")
    others = read_rows(text, "Other ways: MBPP")
    same = [cells for name, cells in others.items() if name.startswith("5-shot: ")]
    assert len(same) == 9
    assert all(cells[3].startswith("+0.000") for cells in same if "its own" not in cells[1])
    # Of copies it is all one whether the way's samples or the zero-shot ones are chosen among.
    assert all(cells[5] == cells[4] for cells in same if "probe of zero-shot" in cells[1])
    assert others["zero-shot: greedy"][5] == ""
    judged = read_rows(text, "Reward model: MBPP")
    assert judged["best by LoRA reward model"][1:3] == judged["ceiling"][1:3]
    assert judged["ceiling"][3].startswith("+0.000")
    limited = read_rows(text, "Few training problems")
    assert limited["training problems"][1:] == ["10", "20", "36"]
    assert all(limited["LoRA SFT: one sample"][at] for at in (1, 3))
    assert not limited["LoRA SFT: one sample"][2]
    name = "states and five numbers, ce"
    above, of_both, of_one = (
        float(limited[each][3].split()[0])
        for each in (
            f"probe minus LoRA SFT's one sample: {name}",
            f"probe: {name}",
            "LoRA SFT: one sample",
        )
    )
    assert above == pytest.approx(of_both - of_one, abs=0.0011)
    preferences = read_rows(text, "Preferences")
    assert preferences["zero-shot, one sample"][1].startswith("0.500")
    assert preferences["LoRA DPO, states, bt"] != preferences["LoRA DPO, one sample"]
    assert "states of another model that reads, ce" in read_rows(text, "Read by another: MBPP")
    cost = read_rows(text, "Cost")
    assert cost["LoRA sft"][1:] == ["32 problems, 64 rows x 2", "12", "24", "3", "a desk"]
    for name in ("k", "kl", "limited"):
        assert (tmp_path / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    left_out = [line for line in text.splitlines() if line.startswith("Left out: ")]
    assert any(line.startswith("Left out: mbpp-sft-20: ") for line in left_out)
    assert not any(line.startswith("Left out: mbpp-shots: ") for line in left_out)


def test_rewards_of_other_samples_are_refused(tmp_path: Path) -> None:
    write_study(tmp_path)
    path = tmp_path / "reward" / "mbpp.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dataset": "another"}))
    study = load("study").Study(tmp_path, k=4, num_test=24)
    with pytest.raises(EvaluationError, match=r"reward: .*mbpp\.json is of another dataset"):
        study.reward_scores("mbpp")


def test_wins_are_over_each_rival_with_ties_half() -> None:
    find = load("on_the_rest").find_wins
    rivals = [np.array([0.0, 0.0, 1.0, 1.0]), np.array([1.0])]
    found = find(np.array([1.0, 0.0, 1.0]), np.array([0, 0, 1]), rivals)
    assert found.tolist() == [0.75, 0.25, 0.5]


def test_what_is_optimised_is_reached_by_the_weights_and_does_not_fall_with_k() -> None:
    """Of all samples it is sum w score - beta (log n - H(w)), by definition."""
    find = load("on_kl").find_objective
    scores, groups = np.random.default_rng(0).normal(size=12), np.repeat([0, 1], 6)
    by_k = [find(scores, groups, k=k, beta=0.5) for k in (1, 2, 3, 6)]
    assert all((low <= high).all() for low, high in pairwise(by_k))
    weights = np.exp(scores[:6] / 0.5) / np.exp(scores[:6] / 0.5).sum()
    kl = np.log(6) + (weights * np.log(weights)).sum()
    assert by_k[-1][0] == pytest.approx((weights * scores[:6]).sum() - 0.5 * kl)
