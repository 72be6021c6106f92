"""What can be checked of ``serve`` and ``collect`` before vLLM is imported, which takes seconds.

The flags are those of our own parser: vLLM's as they are written, None where they are not there.
"""

import argparse
import errno
import re
import socket
from collections.abc import Mapping
from importlib import resources
from ipaddress import IPv6Address
from pathlib import Path

from qprobe import ProbeFileError
from qprobe.errors import SandboxError
from qprobe_server.errors import StartupError
from qprobe_server.settings import Settings, name_probes, read_settings

__all__ = [
    "DEFAULT_PORT",
    "check_adapter",
    "check_address",
    "check_files",
    "check_model",
    "check_sandbox",
    "check_serve",
    "check_worker",
    "shipped_probes",
]

# vLLM's, if --port is not given.
DEFAULT_PORT = 8000

# Ways to run vLLM's server in which its requests would pass us by: (flag, what to do instead).
_REFUSED_MODES = (
    ("grpc", "run one server per API process behind a load balancer"),
    ("data_parallel_multi_port_external_lb", "start one qprobe server per rank"),
    ("enable_elastic_ep", "an engine that is added later would have no probes"),
)
# The oldest models of the hub have no ORG.
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


def check_serve(args: argparse.Namespace) -> None:
    """Check the flags of ``serve``.

    Raises:
        StartupError: One is not valid, a file or folder is not what it should be, or the port is in
            use.
    """
    settings = read_settings(args)
    model = args.model_tag or args.model
    check_model(model, args)
    if model is None and args.served_model_name is not None:
        raise StartupError("--served-model-name goes with a MODEL, not with the default one")
    check_worker(args)
    _check_mode(args)
    if not args.headless:
        check_address(args)
    if settings.allow_code_execution:
        check_sandbox()
    _check_probes(args, settings)


def check_sandbox() -> None:
    """Check that code of candidates can be run safely.

    Raises:
        StartupError: It cannot.
    """
    # Here, since it imports numpy.
    from qprobe.rewards.code import TestsReward

    try:
        TestsReward()
    except SandboxError as error:
        raise StartupError(f"--allow-code-execution: {error}") from error


def check_model(name: str | None, args: argparse.Namespace) -> None:
    """Check that a model may be there; None is the default model.

    Raises:
        StartupError: It is neither a folder with a model nor an id of the hub.
    """
    if name is None or "://" in name or Path(name).is_file():  # an object store, a GGUF file
        return
    folder = Path(name)
    if folder.is_dir():
        # Mistral's own checkpoints have the latter.
        known = args.hf_config_path or any(
            (folder / each).is_file() for each in ("config.json", "params.json")
        )
    else:
        known = _HUB_ID.fullmatch(name) and not name.startswith((".", "~"))
    if not known:
        raise StartupError(
            f"model {name!r} is neither a folder with a config.json nor an id of the hub"
        )


def check_adapter(path: str | None) -> None:
    """Check that a folder holds a LoRA adapter; None is none.

    Raises:
        StartupError: It does not.
    """
    if path is not None and not (Path(path) / "adapter_config.json").is_file():
        raise StartupError(
            f"--adapter {path!r} is no folder of a LoRA adapter: it has no adapter_config.json"
        )


def check_worker(args: argparse.Namespace) -> None:
    """Check that no other worker class is asked for.

    Raises:
        StartupError: One is.
    """
    if args.worker_cls not in (None, "auto"):
        raise StartupError(f"--worker-cls is qprobe's own, got {args.worker_cls!r}")


def _check_mode(args: argparse.Namespace) -> None:
    for name, instead in _REFUSED_MODES:
        if getattr(args, name):
            raise StartupError(f"--{name.replace('_', '-')} cannot be used with qprobe: {instead}")
    if args.api_server_count not in (None, 0, 1) and not args.headless:
        raise StartupError(
            f"--api-server-count must be 1 with qprobe, got {args.api_server_count}: a probe that "
            "is uploaded to one API process would be unknown to the others; run more servers "
            "behind a load balancer"
        )


def check_address(args: argparse.Namespace) -> None:
    """Bind as the server will, once all else is there.

    Raises:
        StartupError: It cannot listen there.
    """
    if args.uds is not None:
        _check_socket_path(Path(args.uds))
        return
    host, port = args.host or "", DEFAULT_PORT if args.port is None else args.port
    family = socket.AF_INET6 if _is_ipv6(host) else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OverflowError as error:
            raise StartupError(f"--port must be from 0 to 65535, got {port}") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise StartupError(
                    f"port {port} is in use by another process: choose another with --port"
                ) from error
            raise StartupError(
                f"cannot listen on --host {host!r} --port {port}: {error.strerror}"
            ) from error


def _is_ipv6(host: str) -> bool:
    try:
        IPv6Address(host)
    except ValueError:
        return False
    return True


def _check_socket_path(path: Path) -> None:
    if path.exists():
        raise StartupError(f"--uds {str(path)!r} is there already: if no server uses it, remove it")
    if not path.parent.is_dir():
        raise StartupError(f"--uds {str(path)!r} must be in a folder that is there")


def shipped_probes() -> list[str]:
    """Return the probes of the default model, as ``--probe`` takes them."""
    folder = Path(str(resources.files("qprobe") / "shipped"))
    return [f"{path.stem}={path}" for path in sorted(folder.iterdir())]


def check_files(files: Mapping[str, Path]) -> None:
    """Check that the files of probes are there.

    Raises:
        StartupError: One is not.
    """
    for name, path in files.items():
        if not path.is_file():
            raise StartupError(f"--probe {name}={path}: must be a file, and there is none")


def _check_probes(args: argparse.Namespace, settings: Settings) -> None:
    is_default = args.model_tag is None and args.model is None
    files = name_probes(args.probe or (shipped_probes() if is_default else ()))
    check_files(files)
    if args.probe_dir is None:
        settings.check(list(files))
    if not files and args.probe_dir is None:
        return
    # Not at the top: torch takes seconds. vLLM needs it anyway.
    from qprobe_server.library.flags import choose_layers, read_probes
    from qprobe_server.library.store import ProbeStore

    store = None if args.probe_dir is None else ProbeStore(args.probe_dir)
    try:
        probes = read_probes(files, store)
    finally:
        if store is not None:
            store.close()
    settings.check([each.name for each in probes])
    choose_layers(args.probe_layers, probes)
    for each in probes:
        try:
            settings.check_probe(each.probe.info)
        except ProbeFileError as error:
            raise StartupError(f"probe {each.name!r}: {error}") from error
