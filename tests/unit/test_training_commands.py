"""sweep, train and eval as commands: which prompts they use, and how they refuse."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qprobe import Probe, Reading, Terms, TrainingSettings, load_probe, save_probe
from qprobe import train as train_probe
from qprobe.data.dataset import GREEDY, Dataset, Sample
from qprobe.data.provenance import SEEN, identify_prompts, read_seen
from qprobe.data.writer import DatasetWriter
from qprobe.errors import TrainingError
from qprobe.evaluation.scoring import score
from qprobe.probe.values import NUMBERS
from qprobe.reports import evaluation
from qprobe.training.design import Design, settle_numbers
from qprobe.training.judgement import judge
from qprobe_server import cli
from qprobe_server.commands.printing import suggest_vote

NUM_PROMPTS, N, HIDDEN = 20, 4, 3
MANIFEST: dict[str, Any] = {
    "model": "org/model",
    "hidden_size": HIDDEN,
    "num_layers": 6,
    "readings": ["3/mean", "3/mean/8", "3/mean/16"],
    "sampling": None,
    "reward": "tests",
    "prompts": {"name": "p.jsonl", "sha256": "f00"},
    "num_prompts": NUM_PROMPTS,
    "prompts_per_shard": NUM_PROMPTS,
}
READING = Reading(3, "mean")
SMALL = ("--k", str(N), "--folds", "2", "--test-fraction", "0.25")


def write_dataset(
    folder: Path,
    *,
    seed: int = 0,
    num_prompts: int = NUM_PROMPTS,
    first: int = 0,
    noise: bool = False,
    text: str = "",
    greedy: float | None = None,
) -> Path:
    """Rewards are the sign of the first feature, or of noise; prompts are numbered from first."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_prompts * N, HIDDEN))
    told = rng.normal(size=len(features)) if noise else features[:, 0]
    samples = [
        Sample(
            prompt=i // N,
            index=i % N,
            text=text,
            token_ids=[1],
            num_scored=1,
            logprob=-1.0,
            finish_reason="stop",
            seed=i,
            reward=float(told[i] > 0),
        )
        for i in range(num_prompts * N)
    ]
    rows = [{"prompt": f"p{first + i}"} for i in range(num_prompts)]
    with DatasetWriter(folder, {**MANIFEST, "num_prompts": num_prompts}, rows) as writer:
        for shard in writer.missing():
            prompts = writer.prompts_of(shard)
            inside = [each for each in samples if each.prompt in prompts]
            rows_of = [i for i, each in enumerate(samples) if each.prompt in prompts]
            whole = torch.tensor(features[rows_of])
            blur = torch.from_numpy(np.random.default_rng(1).normal(size=whole.shape))
            embeddings = {
                "3/mean": whole.half(),
                "3/mean/8": (whole + blur).half(),
                "3/mean/16": (whole + blur / 2).half(),
                "embedding": whole.half(),
            }
            embeddings = {each: embeddings[each] for each in MANIFEST["readings"]}
            if greedy is not None:
                ones = {each.prompt: each for each in reversed(inside)}.values()
                inside += [replace(each, index=GREEDY, reward=greedy) for each in ones]
            writer.write(shard, inside, embeddings)
        writer.finish()
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["qprobe", *map(str, arguments)])
    cli.main()


def train(monkeypatch: pytest.MonkeyPatch, data: Path, output: Path) -> Path:
    run(monkeypatch, "train", data, "--layer", 3, "--objective", "mse", *SMALL, "-o", output)
    return output


def count_prompts(monkeypatch: pytest.MonkeyPatch, probe: Path, data: Path, report: Path) -> int:
    run(monkeypatch, "eval", probe, data, "-o", report, "--no-learning-curve")
    return int(json.loads((report / "metrics.json").read_text())["num_prompts"])


def test_heads_are_trained_like_probes_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A head is what training on the mean over its window gives, whatever else was trained."""
    data = write_dataset(tmp_path / "data")
    path = tmp_path / "p.safetensors"
    flags = ("--layer", 3, "--objective", "mse", *SMALL, "--per-prompt")
    run(monkeypatch, "train", data, *flags, "--checkpoints", "8,16", "-o", path)
    probe = load_probe(path)
    assert probe.info.checkpoints == (8, 16)
    for window in (8, 16):
        alone = tmp_path / f"{window}.safetensors"
        reading = ("--layer", 3, "--window", window)
        like = (*reading, "--objective", "mse", *SMALL, "--per-prompt")
        run(monkeypatch, "train", data, *like, "-o", alone)
        mine, other = probe.heads[window], load_probe(alone).terms
        assert np.array_equal(mine.states[0].weight, other.states[0].weight)
        assert mine.bias == other.bias
    one, two = (probe.heads[window].states[0].weight for window in (8, 16))
    assert not np.array_equal(one, two)


def test_a_probe_reads_what_the_flags_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All numbers by default where log-probabilities are known; several readings.

    Numbers alone teach nothing here, since they are all the same.
    """
    data, path = write_dataset(tmp_path / "data"), tmp_path / "p.safetensors"
    two = ("--reading", "3/mean/8", "--reading", "3/mean")
    for flags, terms in (
        (("--layer", 3), "3/mean + numbers"),
        (("--layer", 3, "--window", 8, "--numbers", "none"), "3/mean/8"),
        ((*two, "--numbers", "cut,length"), "3/mean/8 + 3/mean + numbers(cut,length)"),
        (("--layer", 3, "--gate", "3/8,16"), "3/mean + 3/gate/8,16 + numbers"),
    ):
        run(monkeypatch, "train", data, *flags, *SMALL, "-o", path)
        assert load_probe(path).terms.describe() == terms
    refused: list[tuple[tuple[object, ...], str]] = [
        (("--layer", 3, *two), "--layer and --reading"),
        ((*two, "--window", 8), "--window needs --layer"),
        ((), "--layer, --reading, --gate or --numbers"),
        (("--numbers", "none"), "--layer, --reading, --gate or --numbers"),
        (("--numbers", "all"), "numbers: do not vary"),
        (("--reading", "3/mean", "--reading", "3/mean"), "'3/mean' twice"),
    ]
    for given, said in refused:
        with pytest.raises(SystemExit, match=said):
            run(monkeypatch, "train", data, *given, *SMALL, "-o", path)


def test_what_an_api_has_sampled_is_read_without_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A proxy takes no probe with numbers; whoever asks for them gets them."""
    monkeypatch.setitem(MANIFEST, "upstream", {"model": "m"})
    data = Dataset.load(write_dataset(tmp_path / "data"))
    assert settle_numbers(data, None) == ()
    assert settle_numbers(data, ("cut",)) == ("cut",)


def test_given_completions_are_read_without_numbers(tmp_path: Path) -> None:
    """No token ends them, as one does what is served; one is enough."""
    data = Dataset.load(write_dataset(tmp_path / "data"))
    assert settle_numbers(data, None) == NUMBERS
    data.samples[3] = replace(data.samples[3], finish_reason="given")
    assert settle_numbers(data, None) == ()
    assert settle_numbers(data, ("cut",)) == ("cut",)


def test_heads_read_the_numbers_if_the_dataset_knows_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without the log-probability of every token heads read states only, and the probe says so."""
    data = Dataset.load(write_dataset(tmp_path / "data"))
    settings = TrainingSettings(objective="mse", num_folds=2, weight_decays=(1.0,))
    data.samples = [replace(each, token_ids=[1] * (8 + each.index * 4)) for each in data.samples]
    made = train_probe(data, Reading(3, "mean"), settings, checkpoints=[8, 16])
    assert made.terms.describe() == "3/mean + numbers"
    assert [each.describe() for each in made.heads.values()] == ["3/mean/8", "3/mean/16"]
    assert "heads read states only" in made.info.training["notes"][0]
    rng = np.random.default_rng(0)
    for place, each in enumerate(data.samples):
        logprobs = rng.normal(size=len(each.token_ids)).round(4).tolist()
        data.samples[place] = replace(each, logprobs=logprobs, logprob=sum(logprobs))
    made = train_probe(data, Reading(3, "mean"), settings, checkpoints=[8, 16])
    assert [each.describe() for each in made.heads.values()] == [
        "3/mean/8 + numbers",
        "3/mean/16 + numbers",
    ]
    assert not any("heads" in note for note in made.info.training["notes"])
    alone = Design((Reading(3, "mean", 8),), NUMBERS)
    scores = score(made.heads[8], data, tokens=8)
    columns = alone.read(data, tokens=8)
    assert columns.numbers is not None
    weights = np.array(list(made.heads[8].numbers.values()))
    expected = columns.blocks[0].numpy() @ made.heads[8].states[0].weight
    expected += columns.numbers.numpy() @ weights + made.heads[8].bias
    assert scores == pytest.approx(expected, abs=1e-4)


def test_a_head_that_cannot_be_trained_is_named_by_its_tokens(tmp_path: Path) -> None:
    """All answers are longer than 8 tokens, so that a head of their length reads nothing."""
    data = Dataset.load(write_dataset(tmp_path / "data"))
    for place, each in enumerate(data.samples):
        data.samples[place] = replace(each, token_ids=[1] * (9 + place % 7))
    settings = TrainingSettings(objective="mse", num_folds=2, weight_decays=(1.0,))
    with pytest.raises(TrainingError, match="head of 8 tokens cannot be trained: numbers: do not"):
        train_probe(data, [], settings, numbers=("length", "cut"), checkpoints=[8])


def test_a_probe_of_some_numbers_is_compared_with_all_of_them(tmp_path: Path) -> None:
    """One of all that are known is these, so that there is nothing to compare."""
    data = Dataset.load(write_dataset(tmp_path / "data"))
    rng = np.random.default_rng(0)
    for place, each in enumerate(data.samples):
        tokens = [1] * int(rng.integers(1, 20))
        data.samples[place] = replace(each, token_ids=tokens, logprob=-float(rng.random()))
    settings = TrainingSettings(objective="mse", num_folds=2, weight_decays=(1.0,))
    for numbers, compared in ((("length", "cut"), True), (NUMBERS, False)):
        probe = train_probe(data, [], settings, numbers=numbers)
        metrics = judge(probe, data, known=None, k=N, beta=0.1)
        assert ("numbers" in metrics["baselines"]) == compared


def test_a_checkpoint_that_the_dataset_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = write_dataset(tmp_path / "data")
    flags = ("--layer", 3, *SMALL, "--checkpoints", "24", "-o", tmp_path / "p.safetensors")
    with pytest.raises(SystemExit, match="'3/mean/24' is not in the dataset"):
        run(monkeypatch, "train", data, *flags)
    assert not (tmp_path / "p.safetensors").exists()


def test_eval_takes_the_prompts_set_aside_also_of_a_new_collection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of the same file, sampled with another seed: no prompt that was trained on is measured."""
    data = write_dataset(tmp_path / "data")
    probe = train(monkeypatch, data, tmp_path / "p.safetensors")
    training = load_probe(probe).info.training
    assert len(read_seen(training)) == training["train_prompts"] == 15
    assert count_prompts(monkeypatch, probe, data, data / "report") == 5
    write_dataset(data)  # a collection that is started again, with a report in its folder
    assert count_prompts(monkeypatch, probe, data, tmp_path / "r") == 5
    anew = write_dataset(tmp_path / "anew", seed=1)
    assert count_prompts(monkeypatch, probe, anew, tmp_path / "r") == 5


def test_eval_leaves_out_what_the_probe_has_seen_in_whatever_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 20 other rows all are measured; of 10 old and 10 new ones those not trained on."""
    probe = train(monkeypatch, write_dataset(tmp_path / "data"), tmp_path / "p.safetensors")
    seen = read_seen(load_probe(probe).info.training)
    monkeypatch.setitem(MANIFEST, "prompts", {"name": "q.jsonl", "sha256": "ba5"})
    other = write_dataset(tmp_path / "other", first=NUM_PROMPTS)
    assert count_prompts(monkeypatch, probe, other, tmp_path / "r") == NUM_PROMPTS
    mixed = write_dataset(tmp_path / "mixed", first=NUM_PROMPTS // 2)
    fresh = [each for each in identify_prompts(Dataset.load(mixed).prompts) if each not in seen]
    assert NUM_PROMPTS // 2 < len(fresh) < NUM_PROMPTS
    assert count_prompts(monkeypatch, probe, mixed, tmp_path / "r") == len(fresh)
    assert f"{len(fresh)} of {NUM_PROMPTS} prompts, not trained on" in capsys.readouterr().out


def test_eval_says_that_a_probe_does_not_tell_what_it_has_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_dataset(tmp_path / "data")
    probe = load_probe(train(monkeypatch, data, tmp_path / "p.safetensors"))
    silent = tmp_path / "silent.safetensors"
    save_probe(Probe(replace(probe.info, training={}), probe.terms), silent)
    assert count_prompts(monkeypatch, silent, data, tmp_path / "r") == NUM_PROMPTS
    assert "does not say which prompts" in capsys.readouterr().err
    bad = tmp_path / "bad.safetensors"
    save_probe(Probe(replace(probe.info, training={SEEN: "abc"}), probe.terms), bad)
    with pytest.raises(SystemExit, match=f"training.{SEEN}: must be 12 digits"):
        run(monkeypatch, "eval", bad, data, "-o", tmp_path / "r")


def test_eval_notes_another_adapter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probe = train(monkeypatch, write_dataset(tmp_path / "data"), tmp_path / "p.safetensors")
    monkeypatch.setitem(MANIFEST, "adapter", {"name": "mine"})
    other = write_dataset(tmp_path / "other")
    assert count_prompts(monkeypatch, probe, other, tmp_path / "r") == 5
    assert "warning: adapter: is {'name': 'mine'} in the dataset, None" in capsys.readouterr().err
    with_it = train(monkeypatch, other, tmp_path / "with.safetensors")
    assert load_probe(with_it).info.adapter == "mine"
    assert load_probe(probe).info.adapter is None


def test_eval_notes_other_shots(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shots = {"name": "good.jsonl", "num_shots": 5}
    monkeypatch.setitem(MANIFEST, "shots", shots)
    data = write_dataset(tmp_path / "data")
    probe = train(monkeypatch, data, tmp_path / "p.safetensors")
    assert load_probe(probe).info.training["shots"] == shots
    monkeypatch.delitem(MANIFEST, "shots")
    other = write_dataset(tmp_path / "other")
    assert count_prompts(monkeypatch, probe, other, tmp_path / "r") == 5
    assert "warning: shots: is None in the dataset, {'name'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("field", "value"), [("model", "org/other"), ("hidden_size", 4), ("num_layers", 7)]
)
def test_eval_refuses_what_another_model_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, field: str, value: object
) -> None:
    probe = train(monkeypatch, write_dataset(tmp_path / "data"), tmp_path / "p.safetensors")
    monkeypatch.setitem(MANIFEST, field, value)
    other = write_dataset(tmp_path / "other")
    with pytest.raises(SystemExit, match=f"{field}: is .*{value}.* in the dataset"):
        run(monkeypatch, "eval", probe, other, "-o", tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_outputs_that_cannot_be_are_refused_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nowhere, file = tmp_path / "no" / "p.safetensors", tmp_path / "file"
    file.write_text("mine")
    for command, output in (("train", nowhere), ("train", tmp_path), ("sweep", file)):
        flags = ["--layer", "3"] if command == "train" else []
        with pytest.raises(SystemExit, match=r"--output .* must be a"):
            run(monkeypatch, command, tmp_path / "not read", *flags, "-o", output)
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    "flags",
    [
        ["--layer", "abc"],
        ["--layer", "0"],
        ["--layer", "3", "--window", "0"],
        ["--layer", "3", "--objective", "best"],
    ],
)
def test_bad_flags_are_named(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "train", tmp_path, *flags, "-o", tmp_path / "p.safetensors")
    assert f"argument {flags[-2]}:" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(monkeypatch, "sweep", tmp_path, "--readings", "3/max", "-o", tmp_path / "s")
    assert "argument --readings:" in capsys.readouterr().err


def test_k_is_what_there_is_unless_more_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With 4 samples a prompt the default is 4, which the probe records; 5 are refused."""
    data, path = write_dataset(tmp_path / "data"), tmp_path / "p.safetensors"
    flags = ("--objectives", "mse", "--folds", "2", "--readings", "3/mean")
    run(monkeypatch, "sweep", data, *flags, "-o", tmp_path / "s")
    run(monkeypatch, "train", data, "--layer", "3", "--folds", "2", "-o", path)
    for probe in (path, tmp_path / "s" / "probe.safetensors"):
        info = load_probe(probe).info
        assert info.k == info.training["k"] == N
    for command, output in (("sweep", tmp_path / "s2"), ("train", tmp_path / "p2.safetensors")):
        layer = ["--layer", "3"] if command == "train" else []
        with pytest.raises(SystemExit, match=r"k: must be from 1 to 4, .* got 5"):
            run(monkeypatch, command, data, *layer, "--k", 5, "-o", output)
        assert not output.exists()
    loaded = load_probe(path)
    save_probe(Probe(replace(loaded.info, k=16), loaded.terms), path)
    capsys.readouterr()
    assert count_prompts(monkeypatch, path, data, tmp_path / "r") == 5
    assert "k is 4, the fewest samples of a prompt; the probe recom" in capsys.readouterr().err
    assert json.loads((tmp_path / "r" / "metrics.json").read_text())["k"] == 4


def test_a_sweep_prints_its_table_once_and_skips_what_no_answer_fills(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers of one token: every window is the whole answer."""
    data = write_dataset(tmp_path / "data")
    flags = ("--objectives", "mse,ce", "--folds", "2", "--numbers", "none")
    run(monkeypatch, "sweep", data, *flags, "-o", tmp_path / "s")
    out, err = capsys.readouterr()
    assert err.splitlines()[0].endswith("longer than these windows: 3/mean/8, 3/mean/16")
    assert [line.split()[0] for line in out.splitlines()[:2]] == ["terms", "3/mean"]
    stored = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert {cell["terms"] for cell in stored["cells"]} == {"3/mean"}
    for cell in stored["cells"]:
        assert out.count(f"{cell['reward']:.3f}") + err.count(f"{cell['reward']:.3f}") <= 2
    assert "on 5 prompts set aside, k=4, beta=0.1" in out


def test_the_cells_of_a_sweep_stay_until_all_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    data = write_dataset(tmp_path / "data")
    flags = ("--objectives", "mse", "--folds", "2", "--numbers", "none", "-o", tmp_path / "s")
    with monkeypatch.context() as full:
        full.setattr(evaluation, "write_report", fail)
        with pytest.raises((OSError, SystemExit), match="no space left"):
            run(monkeypatch, "sweep", data, *flags)
    assert (tmp_path / "s" / "sweep-cells.json").exists()
    run(monkeypatch, "sweep", data, *flags)
    assert not (tmp_path / "s" / "sweep-cells.json").exists()


def test_what_an_endpoint_has_read_is_swept_and_evaluated_without_numbers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It tells none, so that they are no rival either."""
    endpoint = {"template": "{completion}", "normalize": True}
    changes = {"readings": ["embedding"], "num_layers": 1, "endpoint": endpoint}
    for name, value in changes.items():
        monkeypatch.setitem(MANIFEST, name, value)
    data = write_dataset(tmp_path / "data")
    flags = ("--objectives", "mse", "--folds", "2")
    run(monkeypatch, "sweep", data, *flags, "-o", tmp_path / "s")
    run(monkeypatch, "eval", tmp_path / "s" / "probe.safetensors", data, "-o", tmp_path / "e")
    for report in ("s", "e"):
        metrics = json.loads((tmp_path / report / "metrics.json").read_text())
        assert metrics["num_prompts"] == NUM_PROMPTS // 4
        assert "numbers" not in metrics["baselines"]


def test_a_probe_that_does_not_help_is_told_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A good one is silent, one that prefers the worst is not; nor one trained on noise.

    Of less than 20 prompts it is told that they are too few.
    """
    data, path = write_dataset(tmp_path / "data", num_prompts=100), tmp_path / "p.safetensors"
    flags = ("--layer", 3, "--objective", "mse", "--weight-decays", 1, *SMALL)
    run(monkeypatch, "train", data, *flags, "-o", path)
    count_prompts(monkeypatch, path, data, tmp_path / "r")
    assert "warning" not in capsys.readouterr().err
    good = load_probe(path)
    (state,) = good.terms.states
    save_probe(Probe(good.info, Terms.linear(state.reading, -state.weight)), path)
    count_prompts(monkeypatch, path, data, tmp_path / "r")
    err = capsys.readouterr().err
    assert err.startswith("warning: the gain over one sample of the base model is -0.")
    assert "does harm" in err
    swept = ("--objectives", "mse", "--folds", "2", "--seed", "1")
    run(monkeypatch, "sweep", write_dataset(tmp_path / "n", noise=True), *swept, "-o", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["gain"]["low"] <= 0
    err = capsys.readouterr().err
    assert "warning: the gain over one sample of the base" in err
    assert "These are 5 prompts, too few for a verdict: 20 are needed." in err
    noise = write_dataset(tmp_path / "noise", noise=True, num_prompts=60)
    run(monkeypatch, "train", noise, *flags, "-o", path)
    chosen = load_probe(path).info.training["cross_validated"]
    assert chosen["gain"]["low"] <= 0
    said = capsys.readouterr()
    assert "warning: the gain over one sample of the base model is" in said.err
    assert f"gain {chosen['gain']['difference']:+.4f} ({chosen['gain']['low']:+.4f} to" in said.out
    assert "a little too high" in said.out


def test_train_tells_of_what_is_free_and_better(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Greedy answers that are all good beat any probe, and those that are all bad none."""
    for greedy, warned in ((1.0, True), (0.0, False)):
        data = write_dataset(tmp_path / f"{greedy}", greedy=greedy, num_prompts=40)
        probe = train(monkeypatch, data, tmp_path / "p.safetensors")
        found = load_probe(probe).info.training["cross_validated"]
        free = found["baselines"]
        assert found["num_questions"] == 30
        assert free["greedy"]["reward"] == greedy
        logprobs = {"best_by_mean_logprob", "best_by_logprob"}
        assert {"greedy", *logprobs} <= set(free)
        assert (free["greedy"]["policy_minus_baseline"]["high"] < 0) == warned
        said = "What needs no probe is better: greedy answer."
        assert (said in capsys.readouterr().err) == warned


def test_votes_by_code_are_named_where_all_rows_have_what_they_need(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown: dict[str, Any] = {"prompt": "p", "visible_tests": ["assert f(1) == 1"]}
    bare: dict[str, Any] = {"prompt": "q"}
    for rows, named in (([shown, shown], True), ([shown, bare], False)):
        suggest_vote(rows)
        assert ("--vote code" in capsys.readouterr().out) == named


def test_what_is_free_chooses_among_as_many_samples_as_the_probe(tmp_path: Path) -> None:
    """Of prompts with 2 to 4 samples, where the log-probability tells the reward: the best of all.

    Greedy answers are known of prompts with 4 samples only. The numbers alone know it as well.
    """
    data = Dataset.load(write_dataset(tmp_path / "data", num_prompts=30))
    kept = [i for i, each in enumerate(data.samples) if each.index < 2 + each.prompt % 3]
    samples = [replace(data.samples[i], logprob=float(data.rewards[i]) - 1) for i in kept]
    embeddings = {READING: data.embeddings_of(READING)[kept]}
    greedy = np.where(np.arange(30) % 3 == 2, 0.25, np.nan)
    fewer = Dataset(data.manifest, data.prompts, samples, embeddings, greedy)
    settings = TrainingSettings(objective="mse", num_folds=2, weight_decays=(1.0,))
    probe = train_probe(fewer, READING, settings, numbers=(), test_fraction=0)
    free = probe.info.training["cross_validated"]["baselines"]
    best = [fewer.rewards[fewer.groups == prompt].max() for prompt in range(30)]
    for name in ("best_by_logprob", "best_by_mean_logprob", "numbers"):
        assert free[name]["reward"] == pytest.approx(np.mean(best))
        assert free[name]["policy_minus_baseline"]["high"] <= 0
    assert free["greedy"]["reward"] == 0.25
    assert free["greedy"]["num_prompts"] == 10


def test_the_page_shows_examples_of_unseen_prompts_unless_told_not_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At most six, escaped, and in no other file."""
    data = write_dataset(tmp_path / "data", text="<b>an answer</b>")
    probe = train(monkeypatch, data, tmp_path / "p.safetensors")
    count_prompts(monkeypatch, probe, data, tmp_path / "r")
    page = (tmp_path / "r" / "report.html").read_text()
    shown = re.findall(r"<summary>(p\d+)</summary>", page)
    assert 1 <= len(shown) <= 6
    seen = read_seen(load_probe(probe).info.training)
    assert not seen & set(identify_prompts([{"prompt": each} for each in shown]))
    assert "&lt;b&gt;an answer&lt;/b&gt;" in page
    assert "<b>an answer" not in page
    assert "best score: reward 1.000, score" in page
    assert "an answer" not in (tmp_path / "r" / "metrics.json").read_text()
    flags = ("-o", tmp_path / "r", "--no-learning-curve", "--no-texts")
    run(monkeypatch, "eval", probe, data, *flags)
    assert "an answer" not in (tmp_path / "r" / "report.html").read_text()


def test_swapped_paths_are_told_with_the_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data, report = write_dataset(tmp_path / "data"), tmp_path / "r"
    probe = train(monkeypatch, data, tmp_path / "p.safetensors")
    output = ("-o", tmp_path / "new.safetensors", "--report", report)
    for arguments, said in (
        (("eval", data, probe, "-o", report), "data' is a folder, a probe's .* is PROBE FOLDER"),
        (("schedule", probe, data, *output), r"safetensors' is a file, .* is FOLDER\.\.\. PROBE"),
        (("sweep", probe, "-o", report), "safetensors' is a file, a dataset's folder is wanted"),
        (("eval", tmp_path / "x", data, "-o", report), "x' is not there: a probe's file"),
        (("eval", probe, tmp_path / "y", "-o", report), "y' is not there: a dataset's folder"),
        (("eval", data / "manifest.json", data, "-o", report), "not a readable .*manifest.json'"),
        (("eval", probe, tmp_path, "-o", report), "is not a dataset: it has no manifest.json"),
    ):
        with pytest.raises(SystemExit, match=said):
            run(monkeypatch, *arguments)
    assert not report.exists()


def test_a_weight_decay_at_the_edge_is_told_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside one that leaves nothing of a probe, 1 is the weakest; alone it is no choice."""
    data = write_dataset(tmp_path / "data")
    for decays, told in (("1e9,1", True), ("1", False)):
        output = tmp_path / "p.safetensors"
        flags = ("--layer", 3, *SMALL, "--beta", 1, "--weight-decays", decays, "-o", output)
        run(monkeypatch, "train", data, *flags)
        assert ("1, is the weakest tried" in capsys.readouterr().err) == told
