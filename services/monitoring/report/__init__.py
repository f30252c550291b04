"""The report of a run: one page with its numbers, curves, alignment and timeline."""

from services.monitoring.report.page import write_report

__all__ = ["write_report"]
