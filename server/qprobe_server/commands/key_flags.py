"""The flags of several commands that say in which header a key of the environment is sent."""

import argparse
import os

from qprobe_server.commands import values
from qprobe_server.errors import StartupError

__all__ = ["add_key_header", "check_key_headers"]

# By the flag of an address: what may hold its key.
_VARIABLES = {
    "upstream": ("QPROBE_UPSTREAM_API_KEY", "QPROBE_UPSTREAM_API_KEYS"),
    "embeddings": ("QPROBE_EMBEDDINGS_API_KEY",),
}


def add_key_header(group: argparse._ArgumentGroup, of: str) -> None:
    """Add the flag of a flag's address.

    Args:
        group: Gets it.
        of: The flag without its dashes: ``upstream`` or ``embeddings``.
    """
    group.add_argument(
        f"--{of}-key-header",
        type=values.header_name,
        metavar="NAME",
        help=f"Header for its key, QPROBE_{of.upper()}_API_KEY in the environment, such as api-key "
        "for Azure, x-api-key for Anthropic. Default: authorization, as a bearer token.",
    )


def check_key_headers(args: argparse.Namespace) -> None:
    """Check that each header that is named has a key to carry.

    Raises:
        StartupError: The environment has none.
    """
    for of, variables in _VARIABLES.items():
        name = getattr(args, f"{of}_key_header")
        if name is not None and not any(os.environ.get(each) for each in variables):
            raise StartupError(
                f"--{of}-key-header {name!r}: there is no key to put there; it is "
                f"{variables[0]} in the environment"
            )
