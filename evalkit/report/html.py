"""The view model laid out as one self-contained HTML file, readable without its script and without a network.

Every text is escaped on output. Model output stands only in element bodies, never in an attribute, a style or
the script. A content security policy forbids the page to load anything but its own embedded fonts, and to run
any script but the one whose digest it names.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import NamedTuple

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from evalkit.report.glyphs import FONTS_DIR, font_css
from evalkit.report.nouns import ReportView

_HERE = Path(__file__).parent


class Entry(NamedTuple):
    """One line of the table of contents."""

    anchor: str
    number: str
    title: str
    parts: tuple[tuple[str, str], ...]


def render_html(view: ReportView) -> str:
    """The report as one HTML text, for the screen (light and dark) and for print."""
    template = _environment().get_template("report.html.j2")
    style = Markup((_HERE / "templates" / "style.css").read_text(encoding="utf-8"))
    fonts = Markup(font_css(lambda face: f"data:font/woff2;base64,{_encoded(face.file)}"))
    script = (_HERE / "templates" / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return template.render(
        v=view,
        style=style,
        screen_fonts=fonts,
        script=Markup(script),
        script_digest=f"sha256-{digest}",
        contents=_contents(view),
    )


def render_page(template: str, view: object) -> str:
    """A page beside the report, in its look: one HTML text without script or outside resource."""
    style = Markup((_HERE / "templates" / "style.css").read_text(encoding="utf-8"))
    fonts = Markup(font_css(lambda face: f"data:font/woff2;base64,{_encoded(face.file)}"))
    return _environment().get_template(template).render(v=view, style=style, screen_fonts=fonts)


def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _encoded(name: str) -> str:
    return base64.b64encode((FONTS_DIR / name).read_bytes()).decode("ascii")


def _contents(view: ReportView) -> tuple[Entry, ...]:
    modes = tuple((f"s6-m{i}", mode.id) for i, mode in enumerate(view.results.modes, 1))
    framed = (("s6-contexts", "Test against deployment"),) if view.contexts else ()
    saes = (("s7-saes", "The SAEs and their floors"),) if view.causes.saes else ()
    causes = tuple((f"s7-m{i}", f"Attribution of {mode.id}") for i, mode in enumerate(view.causes.modes, 1))
    features = (("s7-features", "Features, by their evidence"),) if view.causes.features else ()
    return (
        Entry("s1", "1", "Summary", ()),
        Entry("s2", "2", "Object of the audit", ()),
        Entry("s3", "3", "Scope and threat model", ()),
        Entry("s4", "4", "Method", (("s4-calibration", "Was the instrument calibrated?"),)),
        Entry("s5", "5", "Environment", ()),
        Entry(
            "s6",
            "6",
            "Results",
            (
                ("s6-failures", "All failures"),
                *modes[:12],
                *framed,
                ("s6-random", "Samples that nobody chose"),
            ),
        ),
        Entry("s7", "7", "Attribution", (*saes, *causes[:12], *features)),
        Entry("s8", "8", "Interpretation and limits", ()),
        Entry("s9", "9", "Mitigation and monitoring", ()),
        Entry("a1", "A1", "Requirement map", ()),
        Entry("a2", "A2", "Item index", ()),
        Entry("a3", "A3", "How to verify", ()),
        Entry("a4", "A4", "Glossary and formulas", ()),
        Entry("a5", "A5", "Attachments", ()),
    )
