"""The audit report: a run directory → view model → self-contained HTML → tagged PDF. No torch."""

from evalkit.report.html import render_html
from evalkit.report.pdf import render_pdf
from evalkit.report.run_report import write_report
from evalkit.report.view import ReportView, build_view

__all__ = ["ReportView", "build_view", "render_html", "render_pdf", "write_report"]
