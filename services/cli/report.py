"""``lowdimfa report``: the pictures and the page of a run."""

from __future__ import annotations

from lowdimfa.services.cli.options import RunDirArgument


def report(run_dir: RunDirArgument) -> None:
    """Write curves, alignment, balance and timeline of a run: PNG, one HTML page, and a Chrome trace."""
    from lowdimfa.services.monitoring.report.page import write_report

    print(f"report written to {write_report(run_dir)}")
