"""What the command line says of upstreams and keys."""

import httpx
import pytest

from qprobe_server.commands import arguments
from qprobe_server.errors import StartupError
from qprobe_server.proxy.address import Address, read_address, read_upstreams
from qprobe_server.proxy.events import Event, read_events
from qprobe_server.proxy.keys import find_api_keys, find_upstream_keys
from qprobe_server.proxy.settings import read_proxy_settings

ONE, OTHER = "https://one.example/v1", "https://two.example/v1?v=1"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "UPSTREAM_API_KEY", "UPSTREAM_API_KEYS"):
        monkeypatch.delenv(f"QPROBE_{name}", raising=False)


def test_upstreams_have_names_or_take_all() -> None:
    read = read_upstreams([OTHER, f"org/name:tag={ONE}", f"m={OTHER}"])
    urls = {name: str(each.url) for name, each in read.items()}
    assert urls == {None: OTHER, "org/name:tag": ONE, "m": OTHER}


BAD = [
    ["ftp://x/v1"],
    ["http://"],
    ["localhost:8000"],
    ["=http://x"],
    ["a="],
    ["http://x:port/v1"],
    ["http://x/#a"],
    [ONE, OTHER],
    [f"a={ONE}", f"a={OTHER}"],
]


@pytest.mark.parametrize("given", BAD, ids=" ".join)
def test_what_is_no_upstream_is_told(given: list[str]) -> None:
    with pytest.raises(StartupError, match="--upstream"):
        read_upstreams(given)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(StartupError, match="password") as refused:
        read_address("--upstream", "https://user:secret@x.example/v1")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "path", "query", "there"),
    [
        ("http://x/v1", b"/v1/models", b"", "http://x/v1/models"),
        ("http://x/v1/", b"/v1", b"", "http://x/v1"),
        ("http://x/a/v1", b"/tokenize", b"q=1", "http://x/a/tokenize?q=1"),
        (
            "http://x/deployments/d?v=1",
            b"/v1/chat",
            b"q=%2F",
            "http://x/deployments/d/chat?v=1&q=%2F",
        ),
        ("http://x", b"/v1/a%20b", b"", "http://x/a%20b"),
    ],
)
def test_paths_are_found_there(url: str, path: bytes, query: bytes, there: str) -> None:
    assert str(Address(httpx.URL(url)).locate(path, query)) == there


def test_one_key_is_for_one_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QPROBE_UPSTREAM_API_KEY", "k")
    same = read_upstreams([ONE, f"m={ONE}/more"])
    assert find_upstream_keys(same) == {None: "k", "m": "k"}
    with pytest.raises(StartupError, match="several hosts"):
        find_upstream_keys(read_upstreams([ONE, f"m={OTHER}"]))


def test_several_keys_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    upstreams = read_upstreams([ONE, f"m={OTHER}"])
    assert find_upstream_keys(upstreams) == {}
    monkeypatch.setenv("QPROBE_UPSTREAM_API_KEYS", '{"": "a", "m": "b"}')
    assert find_upstream_keys(upstreams) == {None: "a", "m": "b"}
    for bad in ("k-secret", '["k-secret"]', '{"m": 1}', '{"x": "k-secret"}'):
        monkeypatch.setenv("QPROBE_UPSTREAM_API_KEYS", bad)
        with pytest.raises(StartupError, match="QPROBE_UPSTREAM_API_KEYS") as refused:
            find_upstream_keys(upstreams)
        assert "k-secret" not in str(refused.value)


def test_api_keys_come_from_flags_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_api_keys(None) == []
    monkeypatch.setenv("QPROBE_API_KEY", "e")
    assert find_api_keys(None) == ["e"]
    assert find_api_keys(["a", "b"]) == ["a", "b"]
    with pytest.raises(StartupError, match="--api-key"):
        find_api_keys([" "])


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("authorization", (b"authorization", b"Bearer k")),
        ("X-Api-Key", (b"x-api-key", b"k")),
        ("api-key", (b"api-key", b"k")),
    ],
)
def test_a_key_is_put_where_the_upstream_looks(
    monkeypatch: pytest.MonkeyPatch, name: str, header: tuple[bytes, bytes]
) -> None:
    flags = ["--upstream", ONE, "--embeddings", ONE, "--embedding-model", "e"]
    args = arguments.parse(["proxy", *flags, "--upstream-key-header", name])
    monkeypatch.setenv("QPROBE_UPSTREAM_API_KEY", "k")
    settings = read_proxy_settings(args)
    assert settings.keys == {None: header}
    assert "k'" not in repr(settings)
    for bad in ("a b", "a\nb", "\u00e9"):
        monkeypatch.setenv("QPROBE_UPSTREAM_API_KEY", bad)
        with pytest.raises(StartupError, match="character"):
            read_proxy_settings(args)


def test_events_are_read_as_the_standard_has_them() -> None:
    """Any line end, comments, several lines of data; no end of a line but these three."""
    raw = (
        "\ufeff: comment\r\n\r\ndata: a\u2028b\x0bc\n\nevent: e\rdata:x\rdata:  y\r\r"
        "id: 1\nretry: 2\n\ndata\n\ndata: cut off"
    ).encode()
    assert list(read_events(raw)) == [
        Event("", "a\u2028b\x0bc"),
        Event("e", "x\n y"),
    ]


@pytest.mark.parametrize("event", [Event("", "a"), Event("e", "x\ny")])
def test_events_are_written_as_they_are_read(event: Event) -> None:
    assert list(read_events(event.dump())) == [event]
