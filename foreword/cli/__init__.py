"""The command line: one subcommand a verb. It parses, calls the Python API and prints; what a verb does lives there.

Imports of PyTorch and of everything that needs it stand inside the commands, so that `--help` answers at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from foreword import __version__
from foreword.cli.command import Parser
from foreword.cli.compose import add_average, add_concatenate, add_ensemble, add_inspect
from foreword.cli.export import add_export, add_gateway
from foreword.cli.grid import add_check, add_grid, add_try
from foreword.cli.learn import add_demo, add_pretrain, add_train
from foreword.cli.serve import add_keys, add_serve
from foreword.cli.transfer import add_transfer
from foreword.cli.use import add_convert, add_doctor, add_evaluate, add_generate
from foreword.errors import ForewordError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0: done. 1: done, and a check found a fault (`doctor`). 2: a fault the user can mend, printed in one line.
    """
    # Threads that wait for work sleep instead of spinning: ten times faster on cores shared with other programs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        arguments = make_parser().parse_args(argv)
        return arguments.run(arguments)
    except ForewordError as error:
        return _complain(str(error))
    except OSError as error:  # a full disk, a missing permission, a directory where a file should be
        return _complain(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except KeyboardInterrupt:
        print("foreword: stopped", file=sys.stderr)
        return 130


def _complain(message: str) -> int:
    print(f"foreword: {' '.join(message.split())}", file=sys.stderr)
    return 2


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = Parser(prog="foreword", description="Learn, keep, mix and measure soft prompts for a frozen model.")
    parser.add_argument("--version", action="version", version=f"foreword {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for add in (add_train, add_generate, add_evaluate, add_doctor, add_convert, add_pretrain, add_demo):
        add(commands)
    add_transfer(commands)
    add_grid(commands)
    add_check(commands)
    add_try(commands)
    add_serve(commands)
    add_keys(commands)
    add_export(commands)
    add_gateway(commands)
    for add in (add_ensemble, add_concatenate, add_average, add_inspect):
        add(commands)
    return parser
