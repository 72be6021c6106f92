"""The command ``qprobe``."""

import sys
from importlib import import_module

from qprobe.errors import QProbeError
from qprobe_server import quiet
from qprobe_server.commands import arguments
from qprobe_server.errors import ServerError

__all__ = ["main"]

# Here for the engine's processes: each imports this module before it imports vLLM.
quiet.hush_libraries()

# A builtin's name is no module's.
_MODULES = {"eval": "evaluate"}
# The system's words say what is there, and not what was wanted.
_SAID = {
    FileNotFoundError: "is not there",
    IsADirectoryError: "is a folder, and a file is wanted",
    NotADirectoryError: "is a file, and a folder is wanted",
    PermissionError: "may not be read or written",
}


def main() -> None:
    """Run the command line."""
    args = arguments.parse(sys.argv[1:])
    try:
        # None of them at the top: torch takes seconds, vLLM more.
        name = _MODULES.get(args.command, args.command)
        import_module(f"qprobe_server.commands.{name}").run(args)
    except (QProbeError, ServerError) as error:
        sys.exit(f"qprobe: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if args.command == "serve" or error.filename is None:  # vLLM's: no word is enough
            raise
        said = _SAID.get(type(error), error.strerror)
        sys.exit(f"qprobe: {error.filename}: {said}")
