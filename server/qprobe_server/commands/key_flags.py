"""The flags of several commands that say in which header a key of the environment is sent."""

import argparse

from qprobe_server.commands import values

__all__ = ["add_key_header"]


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
