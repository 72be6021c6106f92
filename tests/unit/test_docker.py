"""What is in ``docker/``, by the linters and parsers of those who read it.

hadolint and shellcheck for the images, Docker Compose itself for the Compose files (it needs no
engine to read them), Kubernetes' own schemas for its manifest.
"""

import http.server
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]  # it has none
import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are another package

from qprobe_server.commands import arguments
from qprobe_server.edge.lifetime import GRACE_S

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
IMAGES = [DOCKER / "Dockerfile.cpu", DOCKER / "Dockerfile.gpu", DOCKER / "Dockerfile.proxy"]
# What a stop may take beyond --shutdown-timeout: ended requests, connections, the engine, its end.
STOPS_S = 4 * GRACE_S
KEYS = {"VLLM_API_KEY": "key", "GRAFANA_ADMIN_PASSWORD": "password"}


def run_tool(name: str, *arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a tool of this environment."""
    tool = Path(sys.executable).with_name(name)
    return subprocess.run(
        [tool, *arguments], capture_output=True, text=True, check=False, timeout=60, **options
    )


def read_flag(words: list[str], flag: str) -> str:
    """Return the value of a flag, given as ``--flag value`` or ``--flag=value``."""
    (joined,) = re.findall(rf"{flag}[ =](\S+)", " ".join(words))
    return str(joined)


@pytest.fixture(params=IMAGES, ids=lambda path: path.suffix[1:])
def dockerfile(request: pytest.FixtureRequest) -> str:
    """Return the text of each Dockerfile, continued lines joined."""
    path: Path = request.param
    return path.read_text().replace("\\\n", " ")


def read_instructions(dockerfile: str, name: str) -> list[str]:
    return [line.partition(" ")[2] for line in dockerfile.splitlines() if line.startswith(name)]


def read_command(dockerfile: str) -> list[str]:
    (command,) = re.findall(r"^CMD (.*)$", dockerfile.replace("\\\n", " "), re.MULTILINE)
    words: list[str] = json.loads(command)
    return words


@pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.suffix[1:])
def test_hadolint(path: Path) -> None:
    done = run_tool("hadolint", "--no-color", path)
    assert done.returncode == 0, done.stdout


def test_shellcheck() -> None:
    steps = sorted((DOCKER / "steps").iterdir())
    recipe = ROOT / "probes" / "recipes" / "mbpp" / "run.sh"
    scripts = [*steps, DOCKER / "entrypoint", ROOT / "requirements" / "install", recipe]
    done = run_tool("shellcheck", *scripts)
    assert done.returncode == 0, done.stdout
    assert all(os.access(script, os.X_OK) for script in scripts)
    assert all("set -euo pipefail" in step.read_text() for step in steps)


def test_every_step_is_used() -> None:
    used = set(re.findall(r"/steps/([\w-]+)", "".join(path.read_text() for path in IMAGES)))
    assert used == {step.name for step in (DOCKER / "steps").iterdir()}


def test_an_image_says_what_it_is(dockerfile: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f'image.version="{project["version"]}"' in dockerfile
    assert f'image.licenses="{project["license"]}"' in dockerfile
    uid = re.findall(r"uid=\$\{QPROBE_UID:-(\d+)\}", (DOCKER / "steps/create-user").read_text())
    assert read_instructions(dockerfile, "USER ")[-1] == f"{uid[0]}:{uid[0]}"


def test_what_an_image_copies_is_there_and_not_ignored() -> None:
    for path in IMAGES:
        ignore = path.with_name(path.name + ".dockerignore").read_text().splitlines()
        first, *kept = [line for line in ignore if not line.startswith("#")]
        assert first == "*"
        patterns = [line[1:] for line in kept if line.startswith("!")]
        for words in read_instructions(path.read_text(), "COPY "):
            sources = [word for word in words.split() if not word.startswith("--")][:-1]
            if "--from=" in words:
                continue
            for source in sources:
                assert (ROOT / source).exists()
                assert any(Path(source).match(pattern) for pattern in patterns), source


def test_the_gpu_image_has_the_pinned_vllm() -> None:
    pin = re.findall(r"^vllm==(.*)$", (ROOT / "requirements/gpu.txt").read_text(), re.MULTILINE)
    assert f"ARG BASE=vllm/vllm-openai:v{pin[0]}\n" in IMAGES[1].read_text()


def read_compose(*files: str, **variables: str) -> dict[str, Any]:
    """Return Docker Compose's own reading of the files."""
    given = [word for file in files for word in ("-f", str(DOCKER / file))]
    # Not a developer's own .env.
    done = run_tool(
        "docker-compose", "--env-file", os.devnull, *given, "config", "--format=json", env=variables
    )
    assert done.returncode == 0, done.stderr
    read: dict[str, Any] = json.loads(done.stdout)
    return read


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]])
def test_compose(files: list[str]) -> None:
    read = read_compose(*files, **KEYS)
    assert set(read["services"]) == {"qprobe", "prometheus", "grafana"}
    for name, service in read["services"].items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["healthcheck"]["test"][0] == "CMD"
        assert all(port["host_ip"] == "127.0.0.1" for port in service.get("ports", []))
        assert name == "qprobe" or re.search(r":v?\d+\.\d+\.\d+$", service["image"])
        for volume in service["volumes"]:
            assert volume["type"] == "volume" or Path(volume["source"]).exists()
    server = read["services"]["qprobe"]
    assert {each["target"] for each in server["volumes"]} == {"/cache", "/probes"}
    assert server["environment"]["VLLM_API_KEY"] == "key"
    shutdown_s = int(read_flag(read_command(IMAGES[0].read_text()), "--shutdown-timeout"))
    assert server["stop_grace_period"] in ("60s", "1m0s")
    assert shutdown_s + STOPS_S < 60


def test_compose_for_a_gpu_reserves_one() -> None:
    server = read_compose("compose.yaml", "compose.gpu.yaml", **KEYS)["services"]["qprobe"]
    (device,) = server["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", 1, ["gpu"])
    assert server["build"]["dockerfile"] == "docker/Dockerfile.gpu"
    assert Path(server["build"]["context"]) == ROOT


PROXY = {
    "QPROBE_API_KEY": "key",
    "QPROBE_UPSTREAM": "https://api.example.com/v1",
    "QPROBE_EMBEDDINGS": "https://api.example.com/v1",
    "QPROBE_EMBEDDING_MODEL": "e",
}


def test_compose_of_the_proxy() -> None:
    """Its command is one that the command line takes."""
    (server,) = read_compose("compose.proxy.yaml", **PROXY)["services"].values()
    assert (server["read_only"], server["cap_drop"]) == (True, ["ALL"])
    assert all(port["host_ip"] == "127.0.0.1" for port in server["ports"])
    assert server["build"]["dockerfile"] == "docker/Dockerfile.proxy"
    args = arguments.parse(server["command"])
    assert args.upstream == [PROXY["QPROBE_UPSTREAM"]]
    assert args.embedding_model == "e"
    assert int(args.shutdown_timeout) + STOPS_S < 60
    for missing in PROXY:
        given = {name: value for name, value in PROXY.items() if name != missing}
        with pytest.raises(AssertionError, match=missing):
            read_compose("compose.proxy.yaml", **given)


def test_the_proxys_packages_are_the_servers() -> None:
    """All that its extra asks for, in the versions that the tests run with."""
    pins = (ROOT / "requirements/proxy.txt").read_text().splitlines()[1:]
    assert set(pins) <= set((ROOT / "requirements/cpu.txt").read_text().splitlines())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["optional-dependencies"]["proxy"], *project["dependencies"]]
    names = {re.split("[>=<]", each)[0].lower().replace("-", "_") for each in wanted}
    assert names <= {pin.partition("==")[0].lower().replace("-", "_") for pin in pins}


@pytest.mark.parametrize("missing", KEYS)
def test_compose_wants_keys(missing: str) -> None:
    with pytest.raises(AssertionError, match=missing):
        read_compose("compose.yaml", **{name: KEYS[name] for name in KEYS if name != missing})


def test_the_example_of_env_has_every_variable() -> None:
    files = "".join(path.read_text() for path in DOCKER.glob("compose*.yaml"))
    wanted = set(re.findall(r"\$\{(\w+)", files))
    example = (DOCKER / ".env.example").read_text()
    assert set(re.findall(r"^(\w+)=", example, re.MULTILINE)) == wanted
    assert ".env" in (DOCKER / ".gitignore").read_text().splitlines()


def test_kubernetes() -> None:
    resources = {}
    for resource in yaml.safe_load_all((DOCKER / "kubernetes.yaml").read_text()):
        kubernetes_validate.validate(resource, "1.37", strict=True)
        resources[resource["kind"], resource["metadata"]["name"]] = resource
    pod = resources["Deployment", "qprobe"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] == "/health"
    claimed = {each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"][:2]}
    assert {("PersistentVolumeClaim", name) for name in claimed} < set(resources)
    # As in the image, and time for it.
    command = read_command(IMAGES[1].read_text())
    assert " ".join(container["args"]).replace("=", " ") == " ".join(command)
    needed_s = int(read_flag(command, "--shutdown-timeout")) + STOPS_S
    needed_s += container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert needed_s < pod["terminationGracePeriodSeconds"]
    service = resources["Service", "qprobe"]["spec"]
    labels = resources["Deployment", "qprobe"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()


def test_grafana_finds_what_is_mounted() -> None:
    read = read_compose("compose.yaml", **KEYS)["services"]
    targets = {each["target"] for each in read["grafana"]["volumes"]}
    provider = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/qprobe.yaml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    home = read["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home in targets
    assert Path(home).parent == Path(folder)
    scraped = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    source = yaml.safe_load(
        (DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text()
    )
    step = source["datasources"][0]["jsonData"]["timeInterval"]
    assert step == scraped["global"]["scrape_interval"]


def test_the_dashboard_is_laid_out() -> None:
    dashboard = json.loads((DOCKER / "grafana/dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"]
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"]
            if panel["type"] != "heatmap":
                assert panel["fieldConfig"]["defaults"]["unit"]
    names = [each["name"] for each in dashboard["templating"]["list"]]
    assert names == ["datasource", "instance", "model", "probe"]


def run_entrypoint(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the entrypoint with a ``qprobe`` that shows its arguments and keys."""
    shim = folder / "qprobe"
    shim.write_text('#!/bin/sh\necho "$* ${VLLM_API_KEY-unset} ${QPROBE_ADMIN_API_KEY-unset}"\n')
    shim.chmod(0o755)
    return subprocess.run(
        [DOCKER / "entrypoint", "serve", "a b"],
        env={"PATH": f"{folder}:{os.environ['PATH']}", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_keys_come_from_the_environment_or_from_files(tmp_path: Path) -> None:
    assert run_entrypoint(tmp_path).stdout == "serve a b unset unset\n"
    # Compose passes what is not in .env as an empty string.
    given = run_entrypoint(tmp_path, VLLM_API_KEY="one", QPROBE_ADMIN_API_KEY="")
    assert given.stdout == "serve a b one unset\n"
    secret = tmp_path / "secret"
    secret.write_text("$(two) 'three'\n")
    read = run_entrypoint(tmp_path, VLLM_API_KEY_FILE=str(secret))
    assert read.stdout == "serve a b $(two) 'three' unset\n"


def test_a_key_file_that_is_empty_or_missing_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("empty", "missing"):
        done = run_entrypoint(tmp_path, VLLM_API_KEY_FILE=str(tmp_path / name))
        assert done.returncode != 0
        assert done.stdout == ""
        assert name in done.stderr


@pytest.fixture
def answering() -> Iterator[dict[str, int]]:
    """Serve /health with a status that the test sets; ``port`` is where."""
    state = {"status": 200}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(state["status"] if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Keep still."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        state["port"] = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield state
        server.shutdown()
        thread.join()


def check_health(url: str) -> int:
    """Run the health check with a proxy in the environment that must not be asked."""
    return subprocess.run(
        [sys.executable, "-I", DOCKER / "healthcheck.py"],
        env={"QPROBE_HEALTH_URL": url, "http_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        check=False,
    ).returncode


def test_the_health_check(answering: dict[str, int]) -> None:
    url = f"http://127.0.0.1:{answering['port']}"
    assert check_health(f"{url}/health") == 0
    assert check_health(f"{url}/elsewhere") == 1
    answering["status"] = 503
    assert check_health(f"{url}/health") == 1
    assert check_health("http://127.0.0.1:9/health") == 1
