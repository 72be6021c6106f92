"""The block that ends a start: what it says is true, and its example can be pasted."""

import json
import shlex
from typing import Any

import pytest

from qprobe import Probe, ProbeInfo, Terms
from qprobe.probe.schedule import Step
from qprobe_server.edge.banner import Listening, describe_proxy, describe_server
from qprobe_server.library.registry import LoadedProbe, ProbeRegistry, ServedProbe
from qprobe_server.settings import Settings

STEPS = (Step(16, 8), Step(32, 1))
HERE = Listening(host=None, port=8000)


def make_probe(
    name: str, *, k: int = 16, heads: bool = False, adapter: str | None = None
) -> ServedProbe:
    steps = STEPS if heads else ()
    info = ProbeInfo(
        base_model="any",
        hidden_size=8,
        num_layers=2,
        objective="ce",
        k=k,
        beta=0.1,
        checkpoints=tuple(step.tokens for step in steps),
        schedule=steps,
        adapter=adapter,
    )
    score = Terms(numbers={"length": 1.0})
    probe = Probe(info, score, {step.tokens: score for step in steps})
    return ProbeRegistry().reserve(LoadedProbe(name, "version", 0, probe))


def describe(listening: Listening = HERE, *probes: ServedProbe, **settings: Any) -> str:
    return describe_server(
        listening, model="m", is_chat=True, probes=probes, settings=Settings(**settings)
    )


def read_curl(block: str) -> list[str]:
    (line,) = (line for line in block.splitlines() if line.startswith("curl "))
    return shlex.split(line)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        (None, "http://localhost:8000"),
        ("0.0.0.0", "http://localhost:8000"),
        ("::", "http://localhost:8000"),
        ("10.1.2.3", "http://10.1.2.3:8000"),
        ("::1", "http://[::1]:8000"),
    ],
)
def test_the_address_is_one_that_a_client_can_use(host: str | None, url: str) -> None:
    block = describe(Listening(host=host, port=8000))
    assert f"{url}/v1" in block
    assert f"{url}/playground" in block
    assert read_curl(block)[2] == f"{url}/v1/chat/completions"


def test_the_example_asks_the_first_probe_that_answers_early() -> None:
    body = read_curl(describe(HERE, make_probe("slow"), make_probe("fast", heads=True)))[-1]
    assert json.loads(body)["model"] == "m:fast"
    body = read_curl(
        describe(HERE, make_probe("slow"), make_probe("fast", heads=True), default_probe="slow")
    )[-1]
    assert json.loads(body)["model"] == "m:slow"
    assert json.loads(read_curl(describe())[-1])["model"] == "m"


def test_a_model_without_a_chat_template_completes() -> None:
    block = describe_server(HERE, model="m", is_chat=False, probes=[], settings=Settings())
    command = read_curl(block)
    assert command[2].endswith("/v1/completions")
    assert "prompt" in json.loads(command[-1])


def test_keys_and_sockets_are_in_the_example() -> None:
    line = describe(Listening(host=None, port=8000, key="$VLLM_API_KEY"))
    assert '-H "authorization: Bearer $VLLM_API_KEY"' in line  # in quotes that a shell reads
    assert "--unix-socket '/tmp/a b'" in describe(Listening(host=None, port=0, socket="/tmp/a b"))
    assert "https://localhost:8443" in describe(Listening(host=None, port=8443, is_tls=True))
    assert "http://localhost:1/ai/v1" in describe(Listening(host=None, port=1, root_path="/ai"))


def test_it_says_what_requests_do() -> None:
    plain, headed = make_probe("plain", k=4), make_probe("headed", heads=True)
    assert "m:plain  best of 4" in describe(HERE, plain)
    assert "best of 2" in describe(HERE, plain, k=2)
    assert "left after" not in describe(HERE, headed)
    scheduled = describe(HERE, plain, headed, schedule="default")
    assert "m:plain  best of 4\n" in scheduled
    assert "m:headed  best of 16; 8, 1 are left after 16, 32 tokens" in scheduled
    assert "--schedule off" in scheduled
    assert "best of 16\n" in describe(HERE, headed, schedule=(Step(99, 1),))  # it has no such head


def test_many_probes_do_not_fill_the_terminal() -> None:
    block = describe(HERE, *(make_probe(f"p{index}") for index in range(100)))
    assert "and 92 more" in block
    assert len(block.splitlines()) < 20


def test_a_probe_of_an_adapter_is_asked_with_it() -> None:
    probes = [make_probe("own", heads=True, adapter="sql-3"), make_probe("any")]
    with_it, without = (
        describe_server(
            HERE,
            model="m",
            is_chat=True,
            probes=probes,
            settings=Settings(),
            adapters=adapters,
        )
        for adapters in ({"other": "x", "sql": "sql-3"}, {})
    )
    assert "sql:own  best of 16" in with_it
    assert json.loads(read_curl(with_it)[-1])["model"] == "sql:own"
    assert "own  is of the LoRA adapter 'sql-3', which is not served" in without
    assert json.loads(read_curl(without)[-1])["model"] == "m:any"
    assert "m:own" in describe(HERE, *probes, allow_model_mismatch=True)


def test_a_proxy_says_what_is_behind_it_and_how_to_ask_it() -> None:
    block = describe_proxy(
        Listening(host=None, port=8000, key="YOUR_API_KEY"),
        upstreams={None: "https://any.example"},
        probes=[make_probe("good"), make_probe("kind")],
        settings=Settings(default_probe="kind", k=4),
    )
    assert "  upstream    https://any.example\n" in block
    assert "  probe       MODEL:good  best of 4\n" in block
    assert "  no probe    means the probe kind\n" in block
    assert "Try, with one of its models for MODEL:\n" in block
    command = read_curl(block)
    assert "http://localhost:8000/v1/chat/completions" in command
    assert "authorization: Bearer YOUR_API_KEY" in command
    assert json.loads(command[-1])["model"] == "MODEL:kind"


def test_a_proxy_with_named_upstreams_asks_one_of_them() -> None:
    block = describe_proxy(
        HERE, upstreams={"gpt": "https://a", None: "https://b"}, probes=[], settings=Settings()
    )
    assert "  no probe    means that a request passes through\n" in block
    assert json.loads(read_curl(block)[-1])["model"] == "gpt"
