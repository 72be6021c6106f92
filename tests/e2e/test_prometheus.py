"""The dashboard's queries, asked of a real Prometheus that scrapes the real server.

Prometheus runs with ``docker/prometheus.yml``, its target and pace replaced. What is asked is what
Grafana would ask, its variables filled in.
"""

import json
import math
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are another package

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana/dashboard.json").read_text())
CHAT = "/v1/chat/completions"

METRICS = {
    "qprobe_prompts_total",
    "qprobe_candidates",
    "qprobe_sampled_tokens_total",
    "qprobe_rejected_tokens_total",
    "qprobe_early_rejected_candidates_total",
    "qprobe_saved_tokens_total",
    "qprobe_wasted_tokens_total",
    "qprobe_score_mean",
    "qprobe_score_spread",
    "qprobe_weight_entropy_nats",
    "qprobe_confidence",
    "qprobe_non_finite_scores_total",
    "qprobe_rerank_overhead_seconds",
    "qprobe_votes_total",
    "qprobe_vote_no_answer_candidates_total",
    "qprobe_vote_seconds",
    "qprobe_probes_loaded",
}
# They have no series until a probe gives a score that is no number, or a request has a schedule.
ABSENT = {
    "qprobe_non_finite_scores_total",
    "qprobe_early_rejected_candidates_total",
    "qprobe_saved_tokens_total",
    "qprobe_wasted_tokens_total",
}
# What Grafana fills in. All of the rates look a minute back.
VARIABLES = {
    "$__rate_interval": "1m",
    "$__range": "1m",
    "$instance": ".*",
    "$model": ".*",
    "$probe": ".*",
}

# Those of a proxy's upstreams are held against a proxy: tests/unit/proxy/test_metrics.py.
QUERIES = [
    (panel["title"], target["expr"])
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
    if "qprobe_upstream_" not in target["expr"]
]
LOOKUPS = [
    (each["name"], each["query"]["query"])
    for each in DASHBOARD["templating"]["list"]
    if each["type"] == "query"
]


def read_names(expression: str) -> set[str]:
    """Return the metrics that a query names."""
    return set(re.findall(r"\b(?:qprobe_|vllm:)\w+", expression))


def fill(expression: str) -> str:
    """Put Grafana's variables into a query."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def read_families(text: str) -> set[str]:
    """Return the series of a /metrics page by name, and the histograms without their suffix."""
    names = set(re.findall(r"^([a-z0-9_:]+)[{ ]", text, re.MULTILINE))
    return names | {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=20)

    def ask(self, path: str, **parameters: str) -> Any:
        """Return what the API answers; fails with its error."""
        reply = self._http.get(path, params=parameters)
        assert reply.status_code == 200, f"{parameters}: {reply.text}"
        return reply.json()["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and values of a query now."""
        found = self.ask("/api/v1/query", query=expression)["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]

    def wait_for_scrapes(self, number: int) -> None:
        """Wait until the server has been scraped so many more times."""
        begin_s = time.time()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = self.query(f"count_over_time(up[{max(int(time.time() - begin_s), 1)}s])")
            if found and found[0][1] >= number and self.query("up")[0][1] == 1:
                return
            time.sleep(0.5)
        raise AssertionError("Prometheus does not scrape the server")


# The labels of what ``rerank`` asks for.
ASKED = {"python", "end", "confident", "mix"}
VOTED = {"text"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module", autouse=True)
def _confident(server: Any, sure_file: Path) -> Iterator[None]:
    """Serve a probe that tells how sure it is, as long as Prometheus looks."""
    path = "/v1/probes/confident"
    admin = {"authorization": f"Bearer {server.admin_key}"}
    put = server.client().put(path, content=sure_file.read_bytes(), headers=admin)
    assert put.status_code == 201, put.text
    yield
    server.client().delete(path, headers=admin)


@pytest.fixture(scope="module")
def prometheus(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Run Prometheus over the server, and rerank what every query needs."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("no `prometheus` here: it is Debian's package of that name")
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    (scraped,) = config["scrape_configs"]
    scraped["static_configs"] = [{"targets": [server.url.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        binary,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        stack.callback(process.wait, timeout=20)
        stack.callback(process.terminate)
        started = Prometheus(f"http://{address}")
        wait_until_ready(f"http://{address}", process, folder / "log")
        # A counter's first value is no growth: the series must be there before they grow.
        for _ in range(2):
            rerank(server)
            started.wait_for_scrapes(3)
        yield started


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError("Prometheus did not start:\n" + log.read_text()[-2000:])


def rerank(server: Any) -> None:
    """Ask for probes, one that tells how sure it is, and a mix whose candidates vote."""
    asked: list[dict[str, Any]] = [
        {"probe": "python"},
        {"probe": "end"},
        {"probe": "confident"},
        {"probe": {"python": 1, "end": 0.5}, "vote": {"by": "text"}},
    ]
    for each in asked:
        body = {
            "model": "smollm2-135m",
            "messages": [{"role": "user", "content": "Name a colour."}],
            "max_tokens": 8,
            "seed": 1,
            "q_probe": {**each, "k": 4},
        }
        reply = server.client().post(CHAT, json=body)
        assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(("title", "expression"), QUERIES, ids=lambda text: text[:60])
def test_a_query_gives_data(prometheus: Prometheus, title: str, expression: str) -> None:
    found = prometheus.query(fill(expression))
    assert found, f"{title}: no data from {expression}"
    # Of what was asked for above: 0 / 0 and a quantile of nothing are rightly NaN for the probes or
    # the votes of other tests, which nobody asks for now.
    values = [
        value
        for metric, value in found
        if metric.get("probe", "mix") in ASKED and metric.get("by", "text") in VOTED
    ]
    assert values, (title, found)
    assert all(math.isfinite(value) for value in values), (title, found)


@pytest.mark.parametrize(("name", "lookup"), LOOKUPS, ids=lambda text: text[:40])
def test_a_variable_has_values(prometheus: Prometheus, name: str, lookup: str) -> None:
    matched = re.fullmatch(r"label_values\(([\w:]+), (\w+)\)", lookup)
    assert matched, f"{name}: {lookup}"
    values = prometheus.ask(f"/api/v1/label/{matched[2]}/values", **{"match[]": matched[1]})
    assert values
    if name == "probe":
        assert set(values) >= ASKED


def test_what_the_figures_say(prometheus: Prometheus) -> None:
    """They are of the requests above: of 4 candidates each three were not returned."""

    def value(expression: str) -> float:
        ((_, found),) = prometheus.query(expression)
        return found

    for probe in sorted(ASKED):
        match = f'{{probe="{probe}"}}'
        prompts = value(f'increase(qprobe_prompts_total{{probe="{probe}", outcome="ok"}}[1m])')
        assert prompts > 0
        sampled = f"increase(qprobe_sampled_tokens_total{match}[1m])"
        rejected = f"increase(qprobe_rejected_tokens_total{match}[1m])"
        # Each of 4 candidates has 1 to 8 tokens: the one returned 8 and three of 1, or 1 and 8.
        assert 3 / (3 + 8) <= value(f"{rejected} / {sampled}") <= 24 / (24 + 1)


def test_the_dashboard_and_the_server_know_the_same_metrics(server: Any) -> None:
    rerank(server)
    served = read_families(server.client().get("/metrics").text)
    shown = set().union(*(read_names(text) for _, text in [*QUERIES, *LOOKUPS]))
    bare = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert bare - ABSENT <= served
    ours = {name for name in served if name.startswith("qprobe_")}
    kept = {name for name in ours if not re.search(r"_(bucket|sum|count|created)$", name)}
    assert kept | ABSENT == METRICS
    assert METRICS - bare == set()


def test_grafana_waits_for_no_unknown_query() -> None:
    """Every variable that a query uses is Grafana's own or the dashboard's."""
    used = set(re.findall(r"\$\w+", json.dumps([text for _, text in QUERIES])))
    assert used == set(VARIABLES)
