"""``lowdimfa report``: the pictures and the page of a run."""

from __future__ import annotations

from lowdimfa.errors import StorageError
from lowdimfa.services.cli.options import RunDirArgument
from lowdimfa.services.run.objects import KEY
from lowdimfa.services.spec.addresses import is_address


def report(run_dir: RunDirArgument) -> None:
    """Write curves, alignment, balance and timeline of a run: PNG, one HTML page, and a Chrome trace."""
    from lowdimfa.services.monitoring.report.page import write_report
    from lowdimfa.services.run.disk import refusal
    from lowdimfa.services.run.mirror import Mirror, fetch

    folder = fetch(run_dir)
    try:
        page = write_report(folder)
    except OSError as error:
        raise refusal("the report can't be written", folder, error) from error
    if trouble := Mirror(run_dir, lambda name: name.startswith("report/")).update():
        raise StorageError(f"the report is in {page.parent}, but not beside the run: {trouble}", setting=KEY)
    print(f"report written to {f'{run_dir}/report/{page.name}' if is_address(run_dir) else page}")
