"""Reads run directories and writes pages: one self-contained HTML file for a run or a comparison."""

from whet.report.report import write_report

__all__ = ["write_report"]
