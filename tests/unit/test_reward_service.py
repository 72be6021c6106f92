"""The reward service against a stand-in for the network."""

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from qprobe.errors import RewardError
from qprobe_server.commands.reward_service import HttpReward

Answer = httpx.Response | Exception
SECRET = "the user's own words"
ROW = {"prompt": SECRET}


def make_reward(*answers: Answer | Callable[[], Answer], max_retries: int = 2) -> HttpReward:
    """Return a reward whose service gives these answers in turn, the last one for ever."""
    left = list(answers)

    def answer(_: httpx.Request) -> httpx.Response:
        given = left.pop(0) if len(left) > 1 else left[0]
        given = given() if callable(given) else given
        if isinstance(given, Exception):
            raise given
        return given

    return HttpReward(
        "http://test/r",
        max_retries=max_retries,
        transport=httpx.MockTransport(answer),
        first_pause_s=0,
    )


def reply(reward: object) -> httpx.Response:
    return httpx.Response(200, content=json.dumps({"reward": reward}).encode())


def test_the_row_and_the_completion_are_posted() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return reply(0.25)

    transport = httpx.MockTransport(answer)
    url = "https://host:1/a?b=c"
    with HttpReward(url, headers={"authorization": "Bearer k"}, transport=transport) as reward:
        reward.check({"anything": 1})
        assert reward({"prompt": "p", "x": [1]}, "é") == 0.25
    (request,) = seen
    assert (request.method, str(request.url)) == ("POST", url)
    assert request.headers["content-type"] == "application/json"
    assert request.headers["authorization"] == "Bearer k"
    assert json.loads(request.content) == {"row": {"prompt": "p", "x": [1]}, "completion": "é"}


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ConnectTimeout("slow"),
        httpx.ReadTimeout("slow"),
        httpx.ReadError("reset"),
        httpx.RemoteProtocolError("half a reply"),
        httpx.Response(429),
        httpx.Response(500),
        httpx.Response(503),
    ],
)
def test_passing_failures_are_tried_again_and_no_more_than_asked(failure: Answer) -> None:
    assert make_reward(failure, failure, reply(1))(ROW, SECRET) == 1.0
    with pytest.raises(RewardError, match="3 times"):
        make_reward(failure, failure, failure, reply(1))(ROW, SECRET)
    with pytest.raises(RewardError, match="1 times"):
        make_reward(failure, reply(1), max_retries=0)(ROW, SECRET)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx.Response(400, text=SECRET), "status 400"),
        (httpx.Response(404, text=SECRET), "status 404"),
        (httpx.Response(204), "status 204"),
        (
            httpx.Response(302, headers={"location": "http://elsewhere"}),
            "status 302, a redirect, which is not followed",
        ),
        (httpx.Response(200, text=SECRET), "not JSON"),
        (httpx.Response(200, text="[1]"), "must be"),
        (httpx.Response(200, text="{}"), "must be"),
        (httpx.Response(200, text="[" * 100_000), "longer|not JSON"),
        (httpx.Response(200, text='{"reward": "' + SECRET + '"}'), "must be"),
        (httpx.Response(200, text='{"reward": true}'), "must be"),
        (httpx.Response(200, text='{"reward": NaN}'), "finite"),
        (httpx.Response(200, text='{"reward": 1e999}'), "finite"),
        (httpx.Response(200, text='{"reward": 1' + "0" * 400 + "}"), "finite"),
        (httpx.Response(200, text='{"reward": 1}' + " " * 70_000), "longer than"),
        (httpx.UnsupportedProtocol("x"), "UnsupportedProtocol"),
    ],
)
def test_other_answers_are_final_and_quote_nothing(answer: Answer, message: str) -> None:
    with pytest.raises(RewardError, match=message) as caught:
        make_reward(answer, reply(1))(ROW, SECRET)
    assert SECRET not in str(caught.value)


def test_a_reply_without_end_is_not_read_to_its_end() -> None:
    num_read = 0

    def body() -> Iterator[bytes]:
        nonlocal num_read
        while True:
            num_read += 1
            yield b" " * 1024

    with pytest.raises(RewardError, match="longer than"):
        make_reward(httpx.Response(200, content=body()))(ROW, SECRET)
    assert num_read <= 66  # 64 KiB in pieces of 1 KiB, one beyond, one read ahead


@pytest.mark.parametrize(("first_s", "want"), [(0.5, [0.5, 1, 2, 4, 8, 16, 30, 30]), (0, [0] * 8)])
def test_pauses_double_up_to_a_limit(
    first_s: float, want: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    transport = httpx.MockTransport(lambda _: httpx.Response(503))
    reward = HttpReward("http://test", max_retries=8, transport=transport, first_pause_s=first_s)
    monkeypatch.setattr(reward._closing, "wait", pauses.append)
    with pytest.raises(RewardError):
        reward(ROW, SECRET)
    assert pauses == want


@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_that_the_service_asks_for_is_kept(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In seconds or as a date; what is neither counts as nothing asked for."""
    pauses: list[float] = []
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    asked = iter(["7", soon, "Wed, 21 Oct 2015 07:28:00 GMT", "soon", "-3"])

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers={"retry-after": next(asked)})

    reward = HttpReward("http://test", max_retries=4, transport=httpx.MockTransport(answer))
    monkeypatch.setattr(reward._closing, "wait", pauses.append)
    with pytest.raises(RewardError, match=f"status {status}, 5 times"):
        reward(ROW, SECRET)
    assert pauses[0] == 7
    assert 80 < pauses[1] <= 90
    assert pauses[2:] == [0, 4.0]


def test_a_reward_takes_no_longer_than_it_may() -> None:
    """A pause that would end too late is not begun, a reply that trickles is left."""
    late = httpx.Response(503, headers={"retry-after": "3600"})
    began = time.monotonic()
    with pytest.raises(RewardError, match="in 3600 s, would be later than the 600 s"):
        make_reward(late)(ROW, SECRET)

    def trickle() -> Iterator[bytes]:
        while True:
            time.sleep(0.02)
            yield b" "

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=trickle())

    reward = HttpReward("http://test", total_s=0.2, transport=httpx.MockTransport(answer))
    with pytest.raises(RewardError, match="did not end in the time"):
        reward(ROW, SECRET)
    assert time.monotonic() - began < 5


def test_closing_ends_a_pause_at_once() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(503, headers={"retry-after": "60"}))
    reward = HttpReward("http://test", transport=transport)
    threading.Timer(0.1, reward.close).start()
    began = time.monotonic()
    with pytest.raises(RewardError, match="was closed"):
        reward(ROW, SECRET)
    assert time.monotonic() - began < 5


def test_batches_are_posted_and_their_replies_checked() -> None:
    seen: list[object] = []
    replies = iter([[0.5, 1], [0.5], [0.5, "x"], [0.5, math.inf], None])

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(200, content=json.dumps({"rewards": next(replies)}).encode())

    reward = HttpReward("http://test", batch_size=2, transport=httpx.MockTransport(answer))
    batch = [({"x": 1}, "a"), ({"x": 2}, "b")]
    assert reward.rate(batch) == [0.5, 1.0]
    assert seen == [{"rows": [{"x": 1}, {"x": 2}], "completions": ["a", "b"]}]
    for said in ("with 2 of them", "must be", "finite", "must be"):
        with pytest.raises(RewardError, match=said):
            reward.rate(batch)


def test_no_more_requests_at_once_than_allowed() -> None:
    """Two must meet in the barrier, or it breaks; a third would be counted."""
    together = threading.Barrier(2, timeout=10)
    lock = threading.Lock()
    under_way = most = 0

    def answer(_: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        together.wait()
        with lock:
            under_way -= 1
        return reply(1)

    transport = httpx.MockTransport(answer)
    reward = HttpReward("http://test", max_concurrent=2, transport=transport)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(lambda _: reward(ROW, SECRET), range(6))) == [1.0] * 6
    assert most == 2


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("ftp://host", {}),
        ("host/path", {}),
        ("http://", {}),
        ("http://host:port", {}),
        ("http://host", {"timeout_s": 0}),
        ("http://host", {"timeout_s": float("nan")}),
        ("http://host", {"total_s": 0}),
        ("http://host", {"batch_size": -1}),
        ("http://host", {"max_retries": -1}),
        ("http://host", {"max_concurrent": 0}),
        ("http://host", {"first_pause_s": -1}),
    ],
)
def test_bad_settings_are_refused(url: str, settings: dict[str, float]) -> None:
    with pytest.raises(RewardError, match="reward 'http'"):
        HttpReward(url, **settings)  # type: ignore[arg-type]  # that is the point
