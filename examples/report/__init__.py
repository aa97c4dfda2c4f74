"""One self-contained HTML page about a run."""

from report.page import write_report

__all__ = ["write_report"]
