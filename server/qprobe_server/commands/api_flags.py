"""The flags of ``collect`` that have an API sample, and what is recorded of it."""

import argparse
from collections.abc import Mapping
from typing import Any

from qprobe_server.commands import values
from qprobe_server.commands.key_flags import add_key_header, check_key_headers
from qprobe_server.commands.parser import refuse_flags
from qprobe_server.errors import StartupError

__all__ = [
    "API_FLAGS",
    "DEFAULT_CONCURRENCY",
    "DEFAULT_MAX_TOKENS",
    "add_api_flags",
    "check_api_flags",
    "describe_api",
]

DEFAULT_CONCURRENCY = 16
# As where a model's own files do not say: few APIs bound an answer that is not asked to be short.
DEFAULT_MAX_TOKENS = 256
_TEMPLATE = "{prompt}{completion}"

# By the manifest's fields.
API_FLAGS = {
    "upstream.url": "--upstream",
    "upstream.model": "--upstream-model",
    "upstream.logprobs": "--upstream-logprobs",
    "embeddings": "--embeddings",
    "endpoint.template": "--embedding-template",
}
# Names of flags that go with one way only.
_ENGINE_ONLY = ("model", "adapter", "token_states")
_READER_ONLY = ("layers", "windows")
_UPSTREAM_ONLY = (
    *("upstream_model", "upstream_logprobs", "upstream_concurrency", "upstream_key_header"),
    "reader",
)
_ENDPOINT_ONLY = ("embedding_model", "embedding_template", "embeddings_key_header")


def add_api_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    group = parser.add_argument_group("an API instead of a model here")
    group.add_argument(
        "--upstream",
        metavar="URL",
        help="Base URL of an OpenAI-compatible API, such as https://api.example.com/v1; its key is "
        "QPROBE_UPSTREAM_API_KEY in the environment.",
    )
    group.add_argument("--upstream-model", metavar="NAME", help="Its model.")
    add_key_header(group, "upstream")
    group.add_argument(
        "--upstream-logprobs",
        action="store_true",
        help="Ask it for log-probabilities too, for `eval` to compare with. A probe for a proxy is "
        "then trained with --numbers none.",
    )
    group.add_argument(
        "--upstream-concurrency",
        type=values.count,
        metavar="NUMBER",
        help=f"Samples that it is asked for at a time. Default: {DEFAULT_CONCURRENCY}.",
    )
    group.add_argument(
        "--on-refusal",
        choices=["stop", "skip"],
        help="What to do if it refuses a prompt for good, as a filter of contents does, or if an "
        "answer is too long for what reads: stop, or leave the prompt out. With --upstream or "
        "--embeddings. Default: stop.",
    )
    group.add_argument(
        "--reader", metavar="MODEL", help="Model here that reads the answers: as --model."
    )
    group.add_argument(
        "--embeddings",
        metavar="URL",
        help="Base URL of an embeddings endpoint of OpenAI's API, which reads the answers instead "
        "of a model here, with --upstream or --completions; its key is QPROBE_EMBEDDINGS_API_KEY "
        "in the environment.",
    )
    group.add_argument("--embedding-model", metavar="NAME", help="Its model; with --embeddings.")
    add_key_header(group, "embeddings")
    group.add_argument(
        "--embedding-template",
        metavar="TEXT",
        help=f"What is embedded. Default: {_TEMPLATE}. Some models want a word in front.",
    )


def check_api_flags(args: argparse.Namespace) -> None:
    """Check what goes with what.

    Raises:
        StartupError: A flag or a key is missing, or a flag is one too many.
    """
    if args.upstream is not None:
        _check_upstream(args)
    else:
        _check_no_upstream(args)
    check_key_headers(args)


def _check_no_upstream(args: argparse.Namespace) -> None:
    refuse_flags(args, _UPSTREAM_ONLY, "goes with --upstream")
    if args.embeddings is None:
        refuse_flags(args, ["on_refusal"], "goes with --upstream or --embeddings")
        refuse_flags(args, _ENDPOINT_ONLY, "goes with --embeddings")
        return
    if not args.completions:
        raise StartupError("--embeddings goes with --upstream or --completions")
    own = [*_ENGINE_ONLY, *_READER_ONLY, *sorted(args.engine_names)]
    refuse_flags(args, own, "goes with a model here, not with --embeddings")
    if args.shots is None:
        refuse_flags(args, ["seed"], "goes with sampling or --shots, not with --completions")
    _check_endpoint(args)


def _check_upstream(args: argparse.Namespace) -> None:
    if args.upstream_model is None:
        raise StartupError("--upstream needs the model's name: --upstream-model")
    if (args.reader is None) == (args.embeddings is None):
        raise StartupError("--upstream needs one of --reader and --embeddings, to read the answers")
    refuse_flags(args, [*_ENGINE_ONLY, "completions"], "does not go with --upstream")
    if args.embeddings is None:
        refuse_flags(args, _ENDPOINT_ONLY, "goes with --embeddings")
        return
    of_the_reader = [*_READER_ONLY, *sorted(args.engine_names)]
    refuse_flags(args, of_the_reader, "goes with --reader, not with --embeddings")
    _check_endpoint(args)


def _check_endpoint(args: argparse.Namespace) -> None:
    if args.embedding_model is None:
        raise StartupError("--embeddings needs the model's name: --embedding-model")
    if "{completion}" not in (args.embedding_template or _TEMPLATE):
        raise StartupError(
            f"--embedding-template must have {{completion}} in it, got {args.embedding_template!r}"
        )


def describe_api(args: argparse.Namespace) -> Mapping[str, Any]:
    """Return what the manifest says of the API, and of the endpoint that reads; else nothing."""
    if args.upstream is None and args.embeddings is None:
        return {}
    # Not at the top: httpx is needed for this alone.
    from qprobe_server.proxy.address import read_address

    told: dict[str, Any] = {}
    if args.upstream is not None:
        upstream = read_address("--upstream", args.upstream)
        told["upstream"] = {
            # Not what stands behind the question mark: it may be secret.
            "url": str(upstream.url.copy_with(query=None)),
            "model": args.upstream_model,
            "logprobs": args.upstream_logprobs,
        }
    if args.embeddings is not None:
        endpoint = read_address("--embeddings", args.embeddings)
        told["model"] = args.embedding_model
        told["embeddings"] = str(endpoint.url.copy_with(query=None))
        # As in a probe's header.
        told["endpoint"] = {"template": args.embedding_template or _TEMPLATE, "normalize": True}
    return told
