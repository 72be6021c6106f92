"""What ``qprobe collect`` records of a reward, and what it sends to a reward service."""

import argparse
from pathlib import Path

import pytest

from qprobe_server.commands import collect as collect_command
from qprobe_server.commands import manifest
from qprobe_server.commands.reward_service import HttpReward

URL = "https://user:hunter2@host:8443/score?token=hunter2#x"


def test_a_services_secrets_are_not_recorded() -> None:
    assert manifest._name_reward(URL) == {"reward": "https://host:8443/score"}


def test_a_changed_reward_is_another_reward(tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text("def score(fields, completion): return 1")
    before = manifest._name_reward(f"python:{file}:score")
    file.write_text("def score(fields, completion): return 0")
    assert manifest._name_reward(f"python:{file}:score") != before


def test_a_service_gets_the_authorization_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QPROBE_REWARD_AUTHORIZATION", "Bearer t")
    made = collect_command._find_reward(argparse.Namespace(reward=URL, reward_workers=None))
    assert isinstance(made, HttpReward)
    with made:
        assert made._client.headers["authorization"] == "Bearer t"


def test_the_bar_moves_while_no_sample_ends(capsys: pytest.CaptureFixture[str]) -> None:
    with collect_command._Bar(total=3, unit="sample", miniters=0, mininterval=0) as bar:
        bar.advance(1)
        for _ in range(2):
            bar.advance(0)
    shown = capsys.readouterr().err
    assert "step 1]" in shown
    assert "1/3" in shown.rpartition("\r")[2]
    assert "step 2]" in shown.rpartition("\r")[2]
