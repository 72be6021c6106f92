"""``qprobe proxy``: reranks what another server samples."""

import argparse
from collections.abc import Sequence

import uvloop

from qprobe_server import quiet
from qprobe_server.commands.key_flags import check_key_headers
from qprobe_server.commands.parser import refuse_flags
from qprobe_server.commands.preflight import (
    check_address,
    check_files,
    check_model,
    check_sandbox,
    check_worker,
)
from qprobe_server.commands.serve import name_given, prepare_environment
from qprobe_server.edge.access_log import start_access_log
from qprobe_server.errors import StartupError
from qprobe_server.library.flags import read_probes
from qprobe_server.library.registry import LoadedProbe
from qprobe_server.library.store import ProbeStore
from qprobe_server.proxy.app import OpenReader, serve
from qprobe_server.proxy.embeddings import open_embeddings_reader
from qprobe_server.proxy.keys import find_embeddings_key
from qprobe_server.proxy.reader import Reader
from qprobe_server.proxy.settings import read_proxy_settings
from qprobe_server.settings import name_probes, read_settings

__all__ = ["run"]


def run(args: argparse.Namespace) -> None:
    """Serve until a signal stops the process.

    Raises:
        StartupError: The flags, the probes and the reader do not go together.
    """
    quiet.be_quiet(verbose=args.verbose)
    own = read_proxy_settings(args)
    settings = read_settings(args, api_keys=own.api_keys)
    open_reader = _choose_reader(args)
    check_key_headers(args)
    check_address(args)
    if settings.allow_code_execution:
        check_sandbox()
    files = name_probes(args.probe)
    check_files(files)
    store = None if args.probe_dir is None else ProbeStore(args.probe_dir)
    probes = read_probes(files, store)
    settings.check([each.name for each in probes])
    if settings.json_access_log:
        start_access_log()
    uvloop.run(serve(own, settings, probes, store, open_reader))


def _choose_reader(given: argparse.Namespace) -> OpenReader:
    """Return what makes the reader.

    Raises:
        StartupError: There are flags of the other kind of reader.
    """
    if given.reader is not None:
        refuse_flags(given, ["embedding_model", "embeddings_key_header"], "goes with --embeddings")
        check_model(given.reader, given)
        check_worker(given)
        return _open_engine(given)
    if not given.embedding_model:
        raise StartupError("--embeddings needs the model's name: --embedding-model")
    of_the_engine = [*sorted(given.engine_names), "chat_template", "probe_layers"]
    refuse_flags(given, [*of_the_engine, "allow_model_mismatch"], "goes with --reader")
    key = find_embeddings_key()

    async def open_reader(probes: Sequence[LoadedProbe]) -> Reader:
        return await open_embeddings_reader(
            given.embeddings,
            model=given.embedding_model,
            api_key=key,
            key_header=given.embeddings_key_header,
        )

    return open_reader


def _open_engine(given: argparse.Namespace) -> OpenReader:
    prepare_environment(verbose=given.verbose)

    async def open_reader(probes: Sequence[LoadedProbe]) -> Reader:
        # Not at the top: it imports vLLM, which reads the environment.
        from qprobe_server.vllm_backend import arguments
        from qprobe_server.vllm_backend.reader import open_engine_reader

        args = arguments.parse(given.argv, given.add_flags)
        args.given = name_given(given)
        args.model = args.reader
        return await open_engine_reader(args, probes)

    return open_reader
