"""The images of ``docker/``, built and run for real by podman, which needs no engine.

A fresh minimal Debian with its Python stands in for the CPU image's base, and the CPU image, less
what vLLM's would lack, for the GPU image's: that shows that its steps work, not that CUDA does. One
server is started for all of this. Longer than a module should be: tests share no code but by
fixtures, and what is about podman is used here alone.
"""

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).parents[2]
KEY = "key-of-the-container"
BUILD_TIMEOUT_S = 1500
START_TIMEOUT_S = 300
GRACE_S = 60
PIP_OPTIONS = {"index-url", "extra-index-url", "find-links", "cert", "trusted-host", "proxy"}
# What compose.yaml asks of Docker.
HARDENED = [
    *("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp:size=1g,mode=1777"),
    *("--cap-drop", "all", "--security-opt", "no-new-privileges", "--shm-size", "2g"),
]


def find_obstacle() -> str | None:
    """Return why images cannot be built here, or None."""
    for tool in ("podman", "runc", "mmdebstrap"):
        if shutil.which(tool) is None:
            return f"no `{tool}` here: it is Debian's package of that name"
    return None if os.geteuid() == 0 else "needs root, to make a base image"


class Podman:
    """Podman with images and containers in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.command = [
            "podman",
            *("--root", str(folder / "images"), "--runroot", str(folder / "run")),
            *("--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", "runc"),
        ]

    def run(self, *arguments: str, timeout_s: int = 120, check: bool = True) -> tuple[int, str]:
        """Return the exit code and what was printed, errors included if it must not fail."""
        done = subprocess.run(
            [*self.command, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            cwd=ROOT,
        )
        assert not check or done.returncode == 0, (done.stdout + done.stderr)[-4000:]
        return done.returncode, done.stdout.strip()

    def build(self, dockerfile: Path, tag: str, **arguments: str) -> None:
        """Build an image; a ``pip.conf`` leads to this machine's package index."""
        config = self.folder / "pip.conf"
        given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        ignore = dockerfile.with_name(dockerfile.name + ".dockerignore")
        self.run(
            *("build", "--isolation", "chroot", "--network", "host", "--format", "docker"),
            *("--pull-never", "--secret", f"id=pip.conf,src={config}", *read_mounts(config)),
            *(f"--ignorefile={ignore}" for _ in range(ignore.exists())),
            *(*given, "-f", str(dockerfile), "-t", tag, str(ROOT)),
            timeout_s=BUILD_TIMEOUT_S,
        )

    def container(self, *options: str, network: str = "bridge") -> list[str]:
        """Return the start of a command that runs the image as compose.yaml does."""
        # Podman raises limits, which a sandbox may forbid.
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        limits = [f"--ulimit=nofile={files}:{files}", "--ulimit=nproc=4096:4096"]
        return ["run", *limits, *HARDENED, "--network", network, *options]

    def remove(self) -> None:
        """Remove all containers and images, and the folder."""
        for command in (["rm", "-af", "-t", "1"], ["rmi", "-af"]):
            self.run(*command, check=False)
        subprocess.run(
            ["umount", str(self.folder / "images/overlay")], check=False, capture_output=True
        )
        shutil.rmtree(self.folder, ignore_errors=True)


def write_pip_config(path: Path) -> None:
    """Write how pip gets packages on this machine."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    options = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        if name.rpartition(".")[2] in PIP_OPTIONS:
            options[name.rpartition(".")[2]] = value.strip("'\"")
    lines = ["[global]", "timeout = 180", *(f"{name} = {text}" for name, text in options.items())]
    path.write_text("\n".join(lines) + "\n")


def read_mounts(config: Path) -> list[str]:
    """Return the flags that mount the folders a ``pip.conf`` names where they are."""
    named = [Path(word) for word in config.read_text().split() if word.startswith("/")]
    folders = {each if each.is_dir() else each.parent for each in named if each.exists()}
    return [f"--volume={folder}:{folder}:ro" for folder in sorted(folders)]


def make_base(podman: Podman, tag: str) -> None:
    """Make an image of this machine's Debian, with its Python, as python:*-slim has it."""
    archive = podman.folder / "base.tar"
    sources = next(
        path
        for path in (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
        if path.exists()
    )
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines())
    command = ["mmdebstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates"]
    with sources.open("rb") as given:
        subprocess.run(
            [*command, release["VERSION_CODENAME"], str(archive)],
            stdin=given,
            capture_output=True,
            timeout=600,
            check=True,
        )
    podman.run("import", str(archive), tag)
    archive.unlink()


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    """Return podman with the CPU image ``qprobe:cpu``."""
    obstacle = find_obstacle()
    if obstacle is not None:
        pytest.skip(obstacle)
    # Not pytest's folder, which it keeps: this takes gigabytes.
    made = Podman(Path(tempfile.mkdtemp(prefix="qprobe-")))
    try:
        write_pip_config(made.folder / "pip.conf")
        make_base(made, "localhost/base")
        made.build(ROOT / "docker/Dockerfile.cpu", "localhost/qprobe:cpu", BASE="localhost/base")
        yield made
    finally:
        made.remove()


def read_config(podman: Podman, tag: str) -> dict[str, Any]:
    """Return the configuration of an image."""
    (found,) = json.loads(podman.run("image", "inspect", tag)[1])
    config: dict[str, Any] = found["Config"]
    return config | {"Healthcheck": found["Healthcheck"]}


def check_config(config: dict[str, Any]) -> None:
    """Check what Compose and Kubernetes rely on."""
    assert config["User"] == "10001:10001"
    assert set(config["Volumes"]) == {"/cache", "/probes"}
    assert set(config["ExposedPorts"]) == {"8000/tcp"}
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert config["Entrypoint"][0] == "tini"
    assert config["Cmd"][:3] == ["serve", "--host", "0.0.0.0"]
    assert config["Healthcheck"]["Test"][0] == "CMD"
    environment = dict(each.split("=", 1) for each in config["Env"])
    assert not {"VLLM_API_KEY", "QPROBE_ADMIN_API_KEY", "HF_TOKEN"} & set(environment)
    kept = [name for name in environment if "CACHE" in name and name != "PIP_NO_CACHE_DIR"]
    for name in ("HOME", "HF_HOME", *kept):
        assert environment[name].startswith("/cache"), name


def test_the_cpu_image(podman: Podman) -> None:
    check_config(read_config(podman, "localhost/qprobe:cpu"))
    shown = podman.run(
        *podman.container("--rm", "--entrypoint=sh", network="none"),
        *(
            "localhost/qprobe:cpu",
            "-c",
            "cat /etc/pip.conf 2>/dev/null; id -u; touch /opt/file 2>&1",
        ),
        check=False,
    )[1]
    # The build's secret is not in it, and its file system is as asked for below.
    assert shown.splitlines()[0] == "10001"
    assert "Read-only file system" in shown


def test_the_gpu_image_on_a_stand_in(podman: Podman) -> None:
    stand_in = podman.folder / "Dockerfile"
    lacks = "userdel qprobe && pip uninstall --yes qprobe gguf accelerate"
    stand_in.write_text(f"FROM localhost/qprobe:cpu\nUSER 0\nRUN {lacks}\n")
    podman.build(stand_in, "localhost/vllm")
    bases = {"BASE": "localhost/vllm", "BUILD_BASE": "localhost/base"}
    podman.build(ROOT / "docker/Dockerfile.gpu", "localhost/qprobe:gpu", **bases)
    check_config(read_config(podman, "localhost/qprobe:gpu"))


def test_the_proxys_image(podman: Podman) -> None:
    """Small, without torch; it runs on a read-only file system, as another user."""
    tag = "localhost/qprobe:proxy"
    podman.build(ROOT / "docker/Dockerfile.proxy", tag, BASE="localhost/base")
    config = read_config(podman, tag)
    assert (config["User"], set(config["Volumes"])) == ("10001:10001", {"/probes"})
    look = "import importlib.util as u; print([u.find_spec(each) for each in ('torch', 'vllm')])"
    run = podman.container("--rm", network="none")
    shown = podman.run(*run, "--entrypoint=python", tag, "-c", look)[1]
    assert shown == "[None, None]"
    assert podman.run(*run, tag)[1].startswith("usage: qprobe proxy")
    # It gets as far as to ask the endpoint.
    flags = ["--upstream", "http://x/v1", "--embeddings", "http://127.0.0.1:9/v1"]
    flags += ["--embedding-model", "e"]
    status, _ = podman.run(*run, tag, "proxy", *flags, check=False)
    assert status == 1


@pytest.fixture(scope="module")
def volumes(podman: Podman) -> list[str]:
    """Return the flags of two volumes, in one the default model, fetched by the image itself."""
    flags = []
    for name in ("cache", "probes"):
        folder = podman.folder / name
        folder.mkdir()
        os.chown(folder, 10001, 10001)
        flags.append(f"--volume={folder}:/{name}")
    config = podman.folder / "pip.conf"
    config.chmod(0o644)
    podman.folder.chmod(0o755)
    fetch = "from qprobe_server import default_model as d; print(d.prepare_default_model())"
    podman.run(
        *podman.container("--rm", "--entrypoint=python3", *flags, network="host"),
        *(*read_mounts(config), f"--volume={config}:/etc/pip.conf:ro"),
        *("localhost/qprobe:cpu", "-c", fetch),
        timeout_s=600,
    )
    return flags


class Container:
    """A running server."""

    def __init__(self, podman: Podman, volumes: list[str]) -> None:
        self._podman = podman
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        publish = f"--publish={self.url.removeprefix('http://')}:8000"
        # The empty admin key is Compose's for one that is not in .env.
        keys = ["--env", f"VLLM_API_KEY={KEY}", "--env", "QPROBE_ADMIN_API_KEY="]
        self.id = podman.run(
            *podman.container("-d", publish, *volumes, *keys), "localhost/qprobe:cpu"
        )[1]

    def check_health(self) -> int:
        """Return the exit code of the image's health check."""
        return self._podman.run("healthcheck", "run", self.id, check=False)[0]

    def show(self, what: str) -> str:
        """Return a field of the container's state."""
        return self._podman.run("inspect", "-f", "{{.State." + what + "}}", self.id)[1]

    def log(self) -> str:
        """Return what the server has printed."""
        command = [*self._podman.command, "logs", self.id]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    def ask(self, **fields: Any) -> httpx.Response:
        """Ask for a chat completion."""
        body = {"model": "smollm2-135m:python", "messages": [{"role": "user", "content": "Hello"}]}
        return httpx.post(
            f"{self.url}/v1/chat/completions",
            json={**body, **fields},
            headers={"authorization": f"Bearer {KEY}"},
            timeout=120,
        )

    def wait_until_healthy(self) -> None:
        """Wait for the health check; fails with the log's end if the server ends first."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.show("Running") == "true" and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            time.sleep(1)
        raise AssertionError(self.log()[-3000:])


def test_a_container_from_its_start_to_its_end(podman: Podman, volumes: list[str]) -> None:
    """By the image's own command, as another user, on a read-only file system.

    Whatever is running when the stop comes is answered or told of it, within the grace period.
    """
    container = Container(podman, volumes)
    assert container.check_health() == 1
    container.wait_until_healthy()
    assert container.check_health() == 0
    assert httpx.get(f"{container.url}/v1/models").status_code == 401
    reply = container.ask(max_tokens=8, q_probe={"k": 4})
    assert reply.status_code == 200, reply.text
    assert len(reply.json()["q_probe"]["results"][0]["scores"]) == 4

    ended: dict[str, str] = {}

    def ask(model: str) -> None:
        try:
            ended[model] = str(container.ask(model=model, max_tokens=100, ignore_eos=True))
        except httpx.TransportError as error:
            ended[model] = f"lost {error}"

    models = ["smollm2-135m", "smollm2-135m:python"]
    threads = [threading.Thread(target=ask, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    time.sleep(2)
    assert ended == {}
    begun_s = time.monotonic()
    podman.run("stop", "-t", str(GRACE_S), container.id)
    assert time.monotonic() - begun_s < GRACE_S
    for thread in threads:
        thread.join(timeout=10)
    assert set(ended) == set(models)
    # Its request needs the engine only, which ends what it has begun before it goes.
    assert ended["smollm2-135m"] == "<Response [200 OK]>"
    assert container.show("ExitCode") == "0"
    check_what_was_written(podman, container)


def check_what_was_written(podman: Podman, container: Container) -> None:
    """Nobody tried to write to the rest of the file system, and the volumes hold the state."""
    log = container.log()
    assert "Read-only file system" not in log
    assert "Permission denied" not in log
    assert KEY not in log
    changed = podman.run("diff", container.id)[1].splitlines()
    # Podman's own: where it puts hosts and resolv.conf, and the mount points.
    assert {line.split("/")[1] for line in changed} <= {"etc", "run", "proc", "sys", "dev"}
    assert {path.name for path in (podman.folder / "probes").iterdir()} == {"lock"}
    assert (podman.folder / "cache" / "qprobe" / "models").is_dir()
    assert any(
        line.startswith('{"') and "/v1/chat/completions" in line for line in log.splitlines()
    )
