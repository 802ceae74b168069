"""The audit report: a run directory → view model → self-contained HTML → tagged PDF. No torch."""

from evalkit.report.html import render_html
from evalkit.report.pdf import draw_pdf, drawn_by, render_pdf
from evalkit.report.run_report import draw_report, write_report
from evalkit.report.view import ReportView, build_view

__all__ = [
    "ReportView",
    "build_view",
    "draw_pdf",
    "draw_report",
    "drawn_by",
    "render_html",
    "render_pdf",
    "write_report",
]
