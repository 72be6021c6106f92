"""Scores on their way from a worker's process to the one that asked."""

import asyncio
import gc
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar

import numpy as np
import pytest
import pytest_asyncio
import zmq

from qprobe_server.vllm_backend.mail import Inbox, Outbox, Scores

SEND = """
import sys
import numpy as np
from qprobe_server.vllm_backend.mail import Outbox
outbox = Outbox()
for number in range(2000):
    rows = [np.full(number % 50, number, np.float32), np.zeros(0, np.float32)]
    outbox.send_all(sys.argv[1], f"key-{number}", rows)
sys.stdin.read()
"""


@pytest_asyncio.fixture
async def inbox() -> AsyncIterator[Inbox]:
    """Open a mailbox."""
    made = Inbox(is_local=True)
    yield made
    made.close()


@pytest.fixture
def outbox() -> Iterator[Outbox]:
    """Be a worker."""
    made = Outbox()
    yield made
    made.close()


async def until_whole(scores: Scores) -> None:
    while scores.tokens is None:
        scores.changed.clear()
        await asyncio.wait_for(scores.changed.wait(), 20)


async def test_what_is_sent_comes_in_order(inbox: Inbox, outbox: Outbox) -> None:
    scores = inbox.expect("a")
    heads = {3: np.array([0.1, np.nan], np.float32), 5: np.array([-2.0], np.float32)}
    for row, sent in heads.items():
        outbox.send_head(inbox.address, "a", row, sent)
    rows = [np.arange(4, dtype=np.float32), np.array([np.nan, 7], np.float32)]
    outbox.send_all(inbox.address, "a", rows)
    await until_whole(scores)
    assert scores.heads.keys() == heads.keys()
    for row, sent in heads.items():
        np.testing.assert_array_equal(scores.heads[row], sent)
    assert scores.tokens is not None
    for sent, found in zip(rows, scores.tokens, strict=True):
        np.testing.assert_array_equal(found, sent)


async def test_by_tcp_where_workers_are_on_other_machines(outbox: Outbox) -> None:
    inbox = Inbox(is_local=False)
    assert inbox.address.startswith("tcp://")
    scores = inbox.expect("a")
    outbox.send_all(inbox.address, "a", [np.ones(2, np.float32)])
    await until_whole(scores)
    inbox.close()


async def test_two_thousand_candidates_of_another_process(inbox: Inbox) -> None:
    expected = [inbox.expect(f"key-{number}") for number in range(2000)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SEND, inbox.address, stdin=subprocess.PIPE
    )
    for number, scores in enumerate(expected):
        await until_whole(scores)
        assert scores.tokens is not None
        assert [row.size for row in scores.tokens] == [number % 50, 0]
        assert set(scores.tokens[0].tolist()) <= {number}
    await process.communicate(b"")


async def test_nothing_is_kept_of_what_nobody_awaits(inbox: Inbox, outbox: Outbox) -> None:
    """Of a prompt that was given up, with a word or without."""
    kept, dropped, forgotten = (inbox.expect(key) for key in "abc")
    inbox.forget("c")
    del dropped
    gc.collect()
    for key in "bcda":
        outbox.send_all(inbox.address, key, [np.ones(1, np.float32)])
    await until_whole(kept)
    assert forgotten.tokens is None
    assert len(inbox._expected) == 1


async def test_what_is_no_message_ends_nothing(inbox: Inbox, outbox: Outbox) -> None:
    """Anybody may send to a port of TCP."""
    stranger: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUSH)
    stranger.set(zmq.LINGER, 0)
    stranger.connect(inbox.address)
    scores = inbox.expect("a")
    for parts in (
        [b"x"],
        [b"all", b"\xff", b"", b""],
        [b"all", b"a", b"123", b""],
        [b"all", b"a", b"", b"12345"],
        [b"head", b"a", b"", b""],
        [b"head", b"a", b"\0\0\0\0", b"123"],
    ):
        stranger.send_multipart(parts)
    await asyncio.sleep(0.2)
    stranger.close()
    outbox.send_all(inbox.address, "a", [np.ones(2, np.float32)])
    while scores.tokens is None or not scores.tokens[0].size:
        scores.changed.clear()
        await asyncio.wait_for(scores.changed.wait(), 20)
    assert scores.tokens[0].tolist() == [1.0, 1.0]


async def test_the_reader_does_not_keep_what_the_first_request_had(inbox: Inbox) -> None:
    class Held:
        pass

    async def ask() -> weakref.ref[Held]:
        held = Held()
        ContextVar[Held]("variable").set(held)
        inbox.expect("a")
        return weakref.ref(held)

    found = await asyncio.create_task(ask())
    await asyncio.sleep(0.01)  # the loop lets go of the task
    gc.collect()
    assert found() is None
