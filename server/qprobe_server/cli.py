"""The command ``qprobe``."""

import sys

from qprobe.errors import QProbeError
from qprobe_server.errors import ServerError

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        # None of them at the top: torch takes a second, vLLM several.
        if command == "serve":
            from qprobe_server.commands import serve

            serve.run(sys.argv[1:])
        elif command == "collect":
            from qprobe_server.commands import collect

            collect.main(sys.argv[1:])
        else:
            from qprobe_server.commands import arguments

            args = arguments.parse(sys.argv[1:])
            args.run(args)
    except (QProbeError, ServerError) as error:
        sys.exit(f"qprobe: {error}")
    except OSError as error:
        if command == "serve" or error.filename is None:
            raise
        sys.exit(f"qprobe: {error.filename}: {error.strerror}")
