"""How the scores of candidates get from the worker that makes them to the process that asked.

The worker sends them as they come, past the engine's core: nobody has to ask, so that no step of
the engine waits, and what the worker holds of a candidate ends with the engine's request, however
that ends. ZeroMQ, as between vLLM's own processes: ordered, and nothing is lost while both live.

Relies on vLLM 0.32.0: ``get_open_zmq_ipc_path, get_ip`` (utils/network_utils.py).
"""

import asyncio
import logging
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import numpy as np
import zmq
import zmq.asyncio
from numpy.typing import NDArray
from vllm.utils.network_utils import get_ip, get_open_zmq_ipc_path

from qprobe_server.edge.turns import Turns

__all__ = ["Inbox", "Outbox", "Scores"]

Floats = NDArray[np.float32]

_logger = logging.getLogger(__name__)

_HEAD = b"head"
_ALL = b"all"


class Outbox:
    """The worker's side."""

    def __init__(self) -> None:
        self._sockets: dict[str, zmq.Socket[bytes]] = {}

    def send_head(self, address: str, key: str, row: int, scores: Floats) -> None:
        """Tell the scores of a head's row, as far as its checkpoint."""
        about = np.array([row], np.int32).tobytes()
        self._send(address, [_HEAD, key.encode(), about, scores.tobytes()])

    def send_all(self, address: str, key: str, rows: Sequence[Floats]) -> None:
        """Tell what is known of a candidate that has ended: the scores of its tokens, by row."""
        sizes = np.array([row.size for row in rows], np.int32).tobytes()
        self._send(address, [_ALL, key.encode(), sizes, b"".join(row.tobytes() for row in rows)])

    def close(self) -> None:
        """Send no more; what is on its way is lost."""
        for socket in self._sockets.values():
            socket.close()
        self._sockets.clear()

    def _send(self, address: str, parts: list[bytes]) -> None:
        socket = self._sockets.get(address)
        if socket is None:
            socket = zmq.Context.instance().socket(zmq.PUSH)
            socket.set(zmq.SNDHWM, 0)  # no message is dropped, and none waited for
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.IPV6, 1)  # IPv4 too
            socket.connect(address)
            self._sockets[address] = socket
        socket.send_multipart(parts, zmq.DONTWAIT)


@dataclass(eq=False)
class Scores:
    """What has come of one candidate.

    Attributes:
        heads: Of rows of heads, by row: the scores of the tokens up to the checkpoint, as below.
        tokens: By row the scores of its tokens, shape (tokens + 1,): [0] is the prompt's last one.
            None until the engine has ended the candidate.
        changed: Set when something has come.
    """

    heads: dict[int, Floats] = field(default_factory=dict)
    tokens: list[Floats] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Inbox:
    """The asking process' side; used on the event loop.

    Args:
        is_local: Whether all workers are on this machine.

    Attributes:
        address: Where workers send to.
    """

    def __init__(self, *, is_local: bool) -> None:
        self._socket = zmq.asyncio.Context.instance().socket(zmq.PULL)
        self._socket.set(zmq.RCVHWM, 0)
        self._socket.set(zmq.LINGER, 0)
        if is_local:
            self.address = get_open_zmq_ipc_path()
            self._socket.bind(self.address)
        else:
            host = get_ip()
            if ":" in host:
                self._socket.set(zmq.IPV6, 1)
                host = f"[{host}]"
            port = self._socket.bind_to_random_port(f"tcp://{host}")
            self.address = f"tcp://{host}:{port}"
        # Weak: a prompt that is given up before it began asks for nothing to be forgotten.
        self._expected: WeakValueDictionary[str, Scores] = WeakValueDictionary()
        self._reading: asyncio.Task[None] | None = None

    def expect(self, key: str) -> Scores:
        """Return what comes of a candidate, from now on and as long as the caller keeps it."""
        if self._reading is None:
            # Not in the context of the request that comes first, which would live as long.
            self._reading = asyncio.create_task(self._read(), context=Context())
        scores = self._expected[key] = Scores()
        return scores

    def forget(self, key: str) -> None:
        """Throw away what comes of a candidate. Unknown keys are ignored."""
        self._expected.pop(key, None)

    def check(self) -> None:
        """Raise what has ended the reading, if it has ended."""
        if self._reading is not None and self._reading.done():
            self._reading.result()

    def close(self) -> None:
        """Read no more."""
        if self._reading is not None:
            self._reading.cancel()
        self._socket.close()

    async def _read(self) -> None:
        turns = Turns()
        while True:
            parts = await self._socket.recv_multipart()
            try:
                self._take(*parts)
            except (TypeError, ValueError, IndexError):  # by TCP anybody may send anything
                _logger.warning("a message that is no worker's was thrown away")
            await turns.give_way()

    def _take(self, kind: bytes, key: bytes, about: bytes, data: bytes) -> None:
        scores = self._expected.get(key.decode())
        if scores is None:
            return  # its request has ended
        numbers = np.frombuffer(about, np.int32).tolist()
        if kind == _HEAD:
            scores.heads[numbers[0]] = np.frombuffer(data, np.float32)
        else:
            scores.tokens = np.split(np.frombuffer(data, np.float32), np.cumsum(numbers)[:-1])
        scores.changed.set()
