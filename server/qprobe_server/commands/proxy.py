"""``qprobe proxy``: reranks what another server samples."""

import argparse
import asyncio
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from qprobe_server import quiet
from qprobe_server.commands.preflight import check_address, check_files
from qprobe_server.edge.access_log import start_access_log
from qprobe_server.errors import StartupError
from qprobe_server.library.flags import read_probes
from qprobe_server.library.store import ProbeStore
from qprobe_server.proxy.app import OpenReader, serve
from qprobe_server.proxy.settings import read_proxy_settings
from qprobe_server.settings import name_probes, read_settings

if TYPE_CHECKING:
    from qprobe_server.library.registry import LoadedProbe
    from qprobe_server.proxy.reader import Reader

__all__ = ["run"]

_EMBEDDINGS_KEY_VARIABLE = "QPROBE_EMBEDDINGS_API_KEY"


def run(args: argparse.Namespace) -> None:
    """Serve until a signal stops the process.

    Raises:
        StartupError: The flags, the probes and the reader do not go together.
    """
    quiet.be_quiet(verbose=args.verbose)
    own = read_proxy_settings(args)
    args.api_key = list(own.api_keys)
    settings = replace(read_settings(args), rejects_early=False)
    open_reader = _choose_reader(args)
    check_address(args)
    files = name_probes(args.probe)
    check_files(files)
    store = None if args.probe_dir is None else ProbeStore(args.probe_dir)
    probes = read_probes(files, store)
    settings.check([each.name for each in probes])
    if settings.json_access_log:
        start_access_log()
    asyncio.run(serve(own, settings, probes, store, open_reader))


def _choose_reader(args: argparse.Namespace) -> OpenReader:
    if not args.embedding_model:
        raise StartupError("--embeddings needs the model's name: --embedding-model")

    async def open_reader(probes: "Sequence[LoadedProbe]") -> "Reader":
        from qprobe_server.proxy.embeddings import open_embeddings_reader

        key = os.environ.get(_EMBEDDINGS_KEY_VARIABLE) or None
        return await open_embeddings_reader(
            args.embeddings, model=args.embedding_model, api_key=key, probes=probes
        )

    return open_reader
