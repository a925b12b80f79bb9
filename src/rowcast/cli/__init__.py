"""The command line: `rowcast demo`, `serve`, `setup`, `doctor`, `tail`, `mirror`, `config`.

The one rule of this room: commands hold no logic of their own beyond reading flags and printing. Each imports
the rooms it needs when it runs, so that `rowcast tail` works where only the client is installed.

Exit codes: 0 all is well, 1 it failed while running, 2 a flag or setting is wrong, 3 the database was not set
up. `rowcast doctor` has its own, see there.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; the entry point of the script `rowcast`."""
    try:
        from rowcast.cli.commands import rowcast
    except ModuleNotFoundError as missing:
        if missing.name not in {"click", "rich"}:
            raise
        sys.exit(f'rowcast: the command line needs the package {missing.name}: pip install "rowcast[server]"')
    rowcast(prog_name="rowcast")
