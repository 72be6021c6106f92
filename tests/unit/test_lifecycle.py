"""Probes that come and go: the disk, the registry, and the routes; the workers stood in for."""

import asyncio
import gc
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest
import pytest_asyncio
from fastapi import FastAPI

from qprobe import Probe, ProbeFileError, Reading, Terms, load_probe, save_probe
from qprobe.files import TORN_PREFIX
from qprobe.probe.confidence import Confidence, Platt
from qprobe.probe.terms import GateTerm, StateTerm
from qprobe_server.edge import credentials, routes
from qprobe_server.edge.middleware import AppState
from qprobe_server.errors import RequestError, StartupError
from qprobe_server.library.lifecycle import ProbeLifecycle, check_probes
from qprobe_server.library.registry import ProbeRegistry, ServedProbe, read_probe
from qprobe_server.library.store import ProbeStore
from qprobe_server.settings import Settings

MakeProbe = Callable[..., Path]
ADMIN = "the-admin-key"
KEY = {"authorization": f"Bearer {ADMIN}"}


class Workers:
    """What the workers were given: the probe behind every index."""

    def __init__(self) -> None:
        self.probes: dict[int, Probe] = {}
        self.fails = False

    async def load(self, probes: Sequence[tuple[ServedProbe, Probe]]) -> None:
        await asyncio.sleep(0)
        if self.fails:
            raise RuntimeError("the engine is gone")
        self.probes.update(
            (row, probe) for served, probe in probes for each in served.sums for row in each.rows
        )


def check(probe: Probe) -> None:
    if probe.terms.layers == [5]:
        raise ProbeFileError("terms", "read layer 5, which this server does not expose")


class Server:
    """Our routes around a lifecycle of their own."""

    def __init__(self, folder: Path) -> None:
        self.workers = Workers()
        self.registry = ProbeRegistry()
        self.store = ProbeStore(folder)
        self.lifecycle = ProbeLifecycle(
            self.registry,
            load=self.workers.load,
            check=check,
            store=self.store,
            default_probe="fixed",
        )
        self.app = FastAPI()
        self.app.state.qprobe = AppState(
            settings=Settings(), registry=self.registry, is_model="base".__eq__
        )
        self.app.add_exception_handler(RequestError, routes.refuse)
        self.app.include_router(routes.router)
        self.app.include_router(routes.make_admin_router(self.lifecycle, ADMIN))

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test")

    def names(self) -> list[str]:
        return [each.name for each in self.registry.probes()]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "kept")
    with closing(made.store):
        yield made


@pytest_asyncio.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    async with server.client() as made:
        yield made


def list_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


async def put(client: httpx.AsyncClient, name: str, data: bytes) -> httpx.Response:
    return await client.put(f"/v1/probes/{name}", content=data, headers=KEY)


async def test_a_probe_comes_is_replaced_and_goes(
    server: Server, client: httpx.AsyncClient, make_probe: MakeProbe
) -> None:
    first, second = (make_probe(f"p{k}", k=k).read_bytes() for k in (4, 8))
    created = await put(client, "mine", first)
    assert (created.status_code, created.json()["k"]) == (201, 4)
    assert (await put(client, "mine", first)).status_code == 200
    replaced = await put(client, "mine", second)
    assert (replaced.status_code, replaced.json()["k"]) == (200, 8)
    assert replaced.json()["version"] != created.json()["version"]
    assert (await client.get("/v1/probes")).json()["data"] == [replaced.json()]
    assert (await client.get("/v1/probes/mine")).json() == replaced.json()
    assert server.workers.probes[server.registry.probes()[0].score.rows[0]].info.k == 8
    gone = await client.delete("/v1/probes/mine", headers=KEY)
    assert gone.json() == {"id": "mine", "object": "probe", "deleted": True}
    assert (await client.get("/v1/probes/mine")).status_code == 404
    again = await client.delete("/v1/probes/mine", headers=KEY)
    assert (again.status_code, again.json()["error"]["param"]) == (404, "name")


async def test_a_card_tells_the_terms_and_whether_there_is_a_confidence(
    client: httpx.AsyncClient, make_probe: MakeProbe, tmp_path: Path
) -> None:
    plain = (await put(client, "plain", make_probe("p", window=8).read_bytes())).json()
    assert plain["terms"] == [{"kind": "state", "layer": 3, "pooling": "mean", "window": 8}]
    assert plain["confidence"] is False
    ones = np.ones(4, np.float32)
    terms = Terms(
        (StateTerm(Reading("final", "last"), ones),),
        (GateTerm(2, (4, 8), ones, ones),),
        {"cut": -1.0, "mean_logprob": 1.0},
    )
    confident = Probe(
        load_probe(make_probe("p")).info, terms, confidence=Confidence(Platt(1.0, 0.0))
    )
    save_probe(confident, tmp_path / "confident")
    card = (await put(client, "sure", (tmp_path / "confident").read_bytes())).json()
    assert card["terms"] == [
        {"kind": "state", "layer": "final", "pooling": "last", "window": None},
        {"kind": "gate", "layer": 2, "segments": [4, 8]},
        {"kind": "numbers", "names": ["cut", "mean_logprob"]},
    ]
    assert card["confidence"] is True


async def test_a_version_in_use_keeps_its_index(
    server: Server, client: httpx.AsyncClient, make_probe: MakeProbe
) -> None:
    await put(client, "mine", make_probe("a").read_bytes())
    held = server.registry.get("mine")
    assert held is not None
    for k in range(1, 6):
        await put(client, "mine", make_probe("b", k=k).read_bytes())
        assert server.workers.probes[held.score.rows[0]].info == held.info
    await client.delete("/v1/probes/mine", headers=KEY)
    await put(client, "other", make_probe("c").read_bytes())
    assert server.workers.probes[held.score.rows[0]].info == held.info
    del held
    gc.collect()
    await put(client, "third", make_probe("d").read_bytes())
    assert len(server.workers.probes) <= 4  # indices are used again


async def test_a_server_that_starts_again_has_what_was_uploaded(
    tmp_path: Path, make_probe: MakeProbe
) -> None:
    server = Server(tmp_path / "kept")
    async with server.client() as client:
        for name in ("b", "a", "gone", "same-as-a"):
            made = make_probe("x", k=3 if "a" in name else 5)
            await put(client, name, made.read_bytes())
        await put(client, "b", make_probe("y", k=7).read_bytes())
        await client.delete("/v1/probes/gone", headers=KEY)
        cards = {card["id"]: card for card in (await client.get("/v1/probes")).json()["data"]}
    server.store.close()
    again = Server(tmp_path / "kept")
    given = read_probe("b", make_probe("flag", k=1).read_bytes())
    await again.lifecycle.start([given, *again.store.restore()])
    async with again.client() as client:
        restored = {card["id"]: card for card in (await client.get("/v1/probes")).json()["data"]}
    again.store.close()
    assert restored == cards
    # Two names of one file share it, and no former version is left.
    assert len(list((tmp_path / "kept").glob("*.safetensors"))) == 2


async def test_an_upload_of_what_is_served_already_is_kept(
    server: Server, client: httpx.AsyncClient, make_probe: MakeProbe, tmp_path: Path
) -> None:
    """As a file of --probe is: after the upload it is on the disk, and served as before."""
    data = make_probe("given").read_bytes()
    await server.lifecycle.start([read_probe("given", data, created=5)])
    reply = await put(client, "given", data)
    assert (reply.status_code, reply.json()["created"]) == (200, 5)
    assert server.names() == ["given"]
    again = await put(client, "given", data)
    assert again.status_code == 200
    server.store.close()
    with closing(ProbeStore(tmp_path / "kept")) as store:
        (kept,) = store.restore()
    assert (kept.name, kept.version, kept.created) == ("given", reply.json()["version"], 5)


async def test_nothing_of_a_name_reaches_a_path(
    server: Server, client: httpx.AsyncClient, make_probe: MakeProbe, tmp_path: Path
) -> None:
    data = make_probe("x").read_bytes()
    before = list_files(tmp_path)
    for name in ("..", "..%2f..%2fetc", "%2e%2e%2fx", "a%00b", "a%0ab", "%c3%a9", "a" * 65, ".x"):
        reply = await put(client, name, data)
        assert reply.status_code in (400, 404, 405), name
    assert server.names() == []
    assert list_files(tmp_path) == before
    await put(client, "CON.json", data)
    made = set(list_files(tmp_path)) - set(before)
    assert [len(path.stem) for path in made] == [64, 64]


@pytest.mark.parametrize(
    "data", [b"", b"not a probe", b"\x80\x04]\x94.", b"PK\x03\x04" + b"0" * 99]
)
async def test_a_bad_upload_changes_nothing(
    server: Server, client: httpx.AsyncClient, make_probe: MakeProbe, data: bytes
) -> None:
    good = await put(client, "mine", make_probe("x").read_bytes())
    reply = await put(client, "mine", data)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "file"
    assert reply.json()["type"] == "error"
    assert (await client.get("/v1/probes/mine")).json()["version"] == good.json()["version"]
    assert len(list((server.store._folder).glob("*.safetensors"))) == 1


async def test_a_probe_that_the_server_cannot_score(
    server: Server, client: httpx.AsyncClient, make_probe: MakeProbe
) -> None:
    reply = await put(client, "deep", make_probe("deep", layer=5).read_bytes())
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "terms")
    assert server.names() == []


async def test_a_body_that_is_too_long(server: Server, client: httpx.AsyncClient) -> None:
    whole = await put(client, "big", bytes((4 << 20) + 1))

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield bytes(1 << 16)

    streamed = await client.put("/v1/probes/big", content=chunks(), headers=KEY)
    for reply in (whole, streamed):
        assert (reply.status_code, reply.json()["error"]["param"]) == (413, "body")
    assert server.names() == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {ADMIN}x"},
        {"authorization": f"Basic {ADMIN}"},
        {"authorization": ADMIN},
        {"x-api-key": ADMIN},
    ],
)
async def test_changes_want_the_admin_key(
    server: Server, client: httpx.AsyncClient, make_probe: MakeProbe, headers: dict[str, str]
) -> None:
    data = make_probe("x").read_bytes()
    await put(client, "mine", data)
    for method in ("PUT", "DELETE"):
        reply = await client.request(method, "/v1/probes/mine", content=data, headers=headers)
        assert reply.status_code == 401
        assert ADMIN not in reply.text
    assert server.names() == ["mine"]


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is called: a timing would be a test that chance decides."""
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("secrets.compare_digest", compare)
    keys = credentials.Keys(["one", "another"])
    assert keys.holds(["one", "long" * 100])
    assert compared == [(32, 32)] * 4
    assert not keys.holds(["", "One"])


async def test_the_default_probe_stays(
    server: Server, client: httpx.AsyncClient, make_probe: MakeProbe
) -> None:
    await put(client, "fixed", make_probe("x").read_bytes())
    reply = await client.delete("/v1/probes/fixed", headers=KEY)
    assert (reply.status_code, reply.json()["error"]["type"]) == (409, "ConflictError")
    assert server.names() == ["fixed"]


async def test_workers_that_fail_change_nothing(
    server: Server, client: httpx.AsyncClient, make_probe: MakeProbe
) -> None:
    before = await put(client, "mine", make_probe("x").read_bytes())
    server.workers.fails = True
    assert (await put(client, "mine", make_probe("y", k=2).read_bytes())).status_code == 500
    assert (await client.get("/v1/probes/mine")).json() == before.json()
    server.workers.fails = False
    assert (await put(client, "mine", make_probe("y", k=2).read_bytes())).status_code == 200


async def test_a_disk_that_fails_changes_nothing(
    server: Server,
    client: httpx.AsyncClient,
    make_probe: MakeProbe,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = await put(client, "mine", make_probe("x").read_bytes())

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    data = make_probe("y", k=2).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        assert (await put(client, "mine", data)).status_code == 500
    assert (await client.get("/v1/probes/mine")).json() == before.json()
    assert not [
        path for path in server.store._folder.iterdir() if path.name.startswith(TORN_PREFIX)
    ]
    assert (await put(client, "mine", make_probe("y", k=2).read_bytes())).status_code == 200


async def test_uploads_at_once_end_in_one_of_them(
    server: Server, client: httpx.AsyncClient, make_probe: MakeProbe
) -> None:
    data = [make_probe("x", k=k).read_bytes() for k in range(1, 9)]
    replies = await asyncio.gather(*(put(client, "mine", each) for each in data))
    assert sorted(reply.status_code for reply in replies) == [200] * 7 + [201]
    served = server.registry.get("mine")
    assert served is not None
    assert server.workers.probes[served.score.rows[0]].info == served.info
    (entry,) = server.store._folder.glob("*.json")
    assert json.loads(entry.read_text())["version"] == served.version


def test_a_folder_serves_one_server(tmp_path: Path) -> None:
    store = ProbeStore(tmp_path / "kept")
    with pytest.raises(StartupError, match="used by another server"):
        ProbeStore(tmp_path / "kept")
    store.close()
    ProbeStore(tmp_path / "kept").close()
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match="cannot be used"):
        ProbeStore(tmp_path / "file")


def test_what_a_crash_left_is_removed_and_what_was_changed_is_refused(
    tmp_path: Path, make_probe: MakeProbe
) -> None:
    folder = tmp_path / "kept"
    store = ProbeStore(folder)
    data = make_probe("x").read_bytes()
    store.save(read_probe("mine", data), data)
    (folder / ".part-abc").touch()
    shutil.copy(tmp_path / "x.safetensors", folder / f"{'0' * 64}.safetensors")
    store.close()
    with closing(ProbeStore(folder)) as again:
        assert [each.name for each in again.restore()] == ["mine"]
    assert len(list(folder.iterdir())) == 3  # the lock, the entry and its file
    (blob,) = folder.glob("*.safetensors")
    changed = make_probe("x", k=2).read_bytes()
    for content, message in ((changed, "is not what was uploaded"), (changed[:99], "json")):
        blob.write_bytes(content)
        with closing(ProbeStore(folder)) as again, pytest.raises(StartupError, match=message):
            again.restore()
    blob.unlink()
    with closing(ProbeStore(folder)) as again, pytest.raises(StartupError, match="json"):
        again.restore()


async def test_an_upload_that_is_no_probe_is_said_to_be_what_it_is(
    client: httpx.AsyncClient,
) -> None:
    for data, said in (
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"<!doctype html><html>", "an HTML page"),
        (b"PK\x03\x04" + bytes(26) + b"archive/data.pkl", "a PyTorch file"),
    ):
        reply = await put(client, "new", data)
        assert reply.status_code == 400
        error = reply.json()["error"]
        assert error["param"] == "file"
        assert said in error["message"]


def test_a_start_with_a_probe_that_cannot_be_scored_names_it(make_probe: MakeProbe) -> None:
    data = make_probe("p").read_bytes()
    probes = [read_probe(name, data) for name in ("good", "bad")]

    def check(probe: Probe) -> None:
        if probe is probes[1].probe:
            raise ProbeFileError("layer", "is not there")

    with pytest.raises(StartupError, match=r"^probe 'bad': layer: is not there$"):
        check_probes(probes, check)
