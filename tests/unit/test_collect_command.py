"""What ``qprobe collect`` records of a reward, and what it sends to a reward service."""

import argparse
import os
import sys
import time
from pathlib import Path

import pytest

from qprobe.errors import RewardError
from qprobe.rewards import make_reward
from qprobe_server.commands import arguments, manifest
from qprobe_server.commands.progress import Bar
from qprobe_server.commands.reward_service import HttpReward
from qprobe_server.commands.rewarding import HowToReward, Rewarding, find_reward, try_out

URL = "https://user:hunter2@host:8443/score?token=hunter2#x"


def parse_reward(*flags: object) -> argparse.Namespace:
    """Read flags of rewarding as ``collect`` does."""
    return arguments.parse(["collect", __file__, "-o", "nowhere", *map(str, flags)])


def test_a_services_secrets_are_not_recorded() -> None:
    assert manifest.name_reward(URL) == {"reward": "https://host:8443/score"}


def test_a_changed_reward_is_another_reward(tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text("def score(fields, completion): return 1")
    before = manifest.name_reward(f"python:{file}:score")
    file.write_text("def score(fields, completion): return 0")
    assert manifest.name_reward(f"python:{file}:score") != before


def test_a_changed_module_is_another_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    package = tmp_path / "own_rewards"
    package.mkdir()
    (package / "__init__.py").touch()
    file = package / "short.py"
    file.write_text("def score(row, completion): return 1")
    spec = "python:own_rewards.short:score"
    before = manifest.name_reward(spec)
    file.write_text("def score(row, completion): return 0")
    assert manifest.name_reward(spec) != before
    # What has no file of its own is named as ever.
    assert manifest.name_reward("python:builtins:len") == {"reward": "python:builtins:len"}
    for name in ("own_rewards", "own_rewards.short"):
        sys.modules.pop(name, None)


def test_a_service_gets_the_authorization_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QPROBE_REWARD_AUTHORIZATION", "Bearer t")
    made = find_reward(parse_reward("--reward", URL))
    assert isinstance(made, HttpReward)
    with made:
        assert made._client.headers["authorization"] == "Bearer t"


def test_the_bar_moves_while_no_sample_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar(total=3, unit="sample", miniters=0, mininterval=0) as bar:
        bar.advance(1)
        for _ in range(2):
            bar.advance(0)
    shown = capsys.readouterr().err
    assert "step 1]" in shown
    assert "1/3" in shown.rpartition("\r")[2]
    assert "step 2]" in shown.rpartition("\r")[2]


def write_function(folder: Path, body: str, arguments: str = "row, completion") -> str:
    file = folder / "mine.py"
    file.write_text(f"import time\ndef f({arguments}):\n    {body}\n")
    return f"python:{file}:f"


def test_how_many_calls_at_a_time_suit_a_reward(tmp_path: Path) -> None:
    """A function that takes many is called by one thread, unless more are asked for."""
    cores = os.cpu_count()
    alone = write_function(tmp_path, "return 1.0")
    flags = parse_reward("--reward", alone)
    assert HowToReward.of(flags, find_reward(flags)) == HowToReward(cores or 1)
    many = write_function(tmp_path, "return [1.0]", "completions")
    flags = parse_reward("--reward", many, "--reward-timeout", "2.5")
    assert HowToReward.of(flags, find_reward(flags)) == HowToReward(1, 2.5)
    flags = parse_reward("--reward", many, "--reward-workers", 3, "--on-reward-error", "skip")
    assert HowToReward.of(flags, find_reward(flags)) == HowToReward(3, skip=True)
    flags = parse_reward("--reward", URL, "--reward-timeout", "7", "--reward-batch", "5")
    service = find_reward(flags)
    assert isinstance(service, HttpReward)
    assert (service.batch_size, service._total_s) == (5, 7)
    assert HowToReward.of(flags, service) == HowToReward(8)


@pytest.mark.parametrize("flag", [["--reward-timeout", "0"], ["--reward-timeout", "inf"]])
def test_times_that_are_none(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_reward(*flag)
    assert f"must be a number of seconds above 0, got {flag[1]!r}" in capsys.readouterr().err


def test_a_function_is_tried_on_the_first_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a thread, as it will be called; with skip its failure is told and no more."""
    reward = make_reward(write_function(tmp_path, "return row['gold'] == completion"))
    try_out(reward, HowToReward(2), {"gold": "x"}, "x")
    with pytest.raises(RewardError, match=r"KeyError: 'gold' at .*:3 .tried on the first row and"):
        try_out(reward, HowToReward(2), {}, None)
    assert not capsys.readouterr().err
    try_out(reward, HowToReward(2, skip=True), {}, None)
    assert "raised KeyError: 'gold'" in capsys.readouterr().err
    signals = "import signal; signal.signal(signal.SIGALRM, signal.SIG_DFL)"
    with pytest.raises(RewardError, match="rewards run in threads"):
        try_out(make_reward(write_function(tmp_path, signals)), HowToReward(1), {}, None)


def test_completions_are_rewarded_in_batches_and_in_order(tmp_path: Path) -> None:
    where = write_function(tmp_path, "return [len(completions)] * len(completions)", "completions")
    reward = make_reward(where, batch_size=3)
    with Rewarding(reward, HowToReward(2)) as rewarding:
        rated = [rewarding.add({"prompt": "p"}, str(i), str(i)) for i in range(7)]
        rewarding.flush()
        assert [each.result().reward for each in rated] == [3, 3, 3, 3, 3, 3, 1]


def test_a_failure_stops_and_a_skipped_one_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = make_reward(write_function(tmp_path, "return 1 / (completion != 'bad')"))
    with Rewarding(reward, HowToReward(1, skip=True)) as rewarding:
        rated = [rewarding.add({}, each, f"row {each}") for each in ("a", "bad", "b")]
        assert [each.result().reward for each in rated] == [1.0, None, 1.0]
    assert "which have none: 1;" in capsys.readouterr().err
    assert "ZeroDivisionError: division by zero at" in rewarding.errors[0]
    with Rewarding(reward, HowToReward(1)) as rewarding:
        failed = rewarding.add({}, "bad", "row 1, the greedy answer")
        with pytest.raises(RewardError, match="row 1, the greedy answer"):
            failed.result(10)
        with pytest.raises(RewardError):  # at the next: no need to sample the rest
            rewarding.add({}, "a", "row 2")


def test_nothing_waits_for_a_reward_that_hangs(tmp_path: Path) -> None:
    reward = make_reward(write_function(tmp_path, "time.sleep(60)"))
    began = time.monotonic()
    with Rewarding(reward, HowToReward(1)) as rewarding:
        for each in range(3):
            rewarding.add({}, "", str(each))
    assert time.monotonic() - began < 5
