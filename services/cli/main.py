"""``lowdimfa``: the entry point."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from lowdimfa.services.cli.output import use_streams

STOPPED = 130
"""Exit code after SIGINT or SIGTERM, as shells have it."""


def main() -> None:
    """Run a command and exit with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    use_streams()
    # gRPC's own notes on broken connections; what they mean for a person comes in our words.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from lowdimfa.services.cli.app import run  # here, since a Ctrl-C while it loads ends in no traceback

        code = run()
    except KeyboardInterrupt:
        print("lowdimfa: stopped", file=sys.stderr)
        code = STOPPED
    sys.exit(code)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
