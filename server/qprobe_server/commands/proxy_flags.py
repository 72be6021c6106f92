"""The flags of ``qprobe proxy`` that are its own; those of every server come from ``serve``'s."""

import argparse

from qprobe_server.commands import values
from qprobe_server.commands.key_flags import add_key_header
from qprobe_server.commands.serve_flags import (
    add_choice_flags,
    add_code_flags,
    add_log_flags,
    add_probe_flags,
)

__all__ = ["SHOWN", "add_proxy_flags"]

_USAGE = "qprobe proxy --upstream URL (--reader MODEL | --embeddings URL) --probe NAME=FILE"
_TEXT = """Stands before any OpenAI-compatible or Anthropic server: samples k answers there, reads
them here, and returns one. What names no probe passes through."""

# Of vLLM's flags, which are the reader's, those that ``--help`` shows.
SHOWN = {
    "--shutdown-timeout": "Seconds for open requests when the server stops. Default: 0.",
    "--max-model-len": "Of the reader: the most tokens of a prompt and its answer.",
    "--dtype": "Of the reader's weights and states. Default: auto.",
}


def add_proxy_flags(parser: argparse.ArgumentParser) -> None:
    """Add all flags of ``proxy``, and say what it is."""
    parser.usage, parser.description = f"{_USAGE} [options]", _TEXT
    _add_upstream(parser)
    _add_reader(parser)
    add_choice_flags(parser).add_argument(
        "--budget-tokens",
        type=values.count,
        metavar="NUMBER",
        help="The most tokens that all candidates of a request may have: k times its max_tokens, "
        "which it then has to give. Default: any number.",
    )
    add_probe_flags(parser)
    add_code_flags(parser)
    _add_server(parser)
    add_log_flags(parser)


def _add_upstream(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the upstream, which samples")
    group.add_argument(
        "--upstream",
        action="append",
        required=True,
        metavar="URL|NAME=URL",
        help="Base URL as its clients are given it, such as https://api.example.com/v1. With a "
        "NAME for the model of that name; may be given several times.",
    )
    group.add_argument(
        "--upstream-n",
        action="store_true",
        help="Ask for k choices in one request instead of k requests: cheaper where the upstream "
        "counts the prompt once, and gives as many choices as it is asked for.",
    )
    group.add_argument(
        "--upstream-concurrency",
        type=values.count,
        default=64,
        metavar="NUMBER",
        help="Candidates that an upstream is asked for at a time. Default: 64.",
    )
    group.add_argument(
        "--timeout",
        type=values.seconds,
        default=600.0,
        metavar="SECONDS",
        help="For the candidates of a request, with all retries; the choice is then among those "
        "that are there. Default: 600.",
    )
    group.add_argument(
        "--max-reply-mib",
        type=values.count,
        default=16,
        metavar="MIB",
        help="The largest reply of a candidate, in MiB. Default: 16.",
    )
    add_key_header(group, "upstream")
    group.add_argument(
        "--pass-authorization",
        action="store_true",
        help="Pass the client's own key to the upstream.",
    )


def _add_reader(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the reader, which scores")
    reader = group.add_mutually_exclusive_group(required=True)
    reader.add_argument(
        "--reader",
        metavar="MODEL",
        help="A model that runs here and reads the answers: a hub's ORG/NAME or a folder. vLLM's "
        "flags are its engine's.",
    )
    reader.add_argument(
        "--embeddings",
        metavar="URL",
        help="Base URL of an embeddings endpoint of OpenAI's API; its key is "
        "QPROBE_EMBEDDINGS_API_KEY in the environment.",
    )
    group.add_argument("--embedding-model", metavar="NAME", help="Its model; with --embeddings.")
    add_key_header(group, "embeddings")
    group.add_argument(
        "--chat-template",
        metavar="FILE",
        help="For the chats that --reader reads. Default: its own.",
    )


def _add_server(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the server")
    group.add_argument("--host", help="Address to listen on. Default: all of this machine's.")
    group.add_argument("--port", type=int, default=8000, help="Default: 8000.")
    group.add_argument(
        "--api-key",
        action="append",
        metavar="KEY",
        help="Key that requests must bring. May be several. Default: QPROBE_API_KEY in the "
        "environment; without one everybody may ask.",
    )
    group.add_argument(
        "--allowed-origins",
        type=values.origins,
        metavar="LIST",
        help="Origins of pages that may ask from a browser, as a JSON list; '[\"*\"]' is any. "
        "Default: none but the playground.",
    )
    group.add_argument(
        "--sse-keep-alive-interval",
        type=values.seconds,
        metavar="SECONDS",
        help="A stream that waits gets a comment as often. Default: 10.",
    )
    # Of `serve` alone; what is shared with it looks for them.
    parser.set_defaults(uds=None, schedule=None)
