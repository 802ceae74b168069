"""HTML → tagged PDF/A-3a with results.json attached, byte-identical wherever it is drawn.

1. Characters that no vendored font holds are written as `⟨U+4E2D⟩`, so no font of the machine is used.
2. WeasyPrint lays the page out. Its fetcher hands out our fonts by exact name and refuses everything else
   (WeasyPrint's default one lets injected markup read local files and call out).
3. A pikepdf step adds the PDF/UA-1 identification, which WeasyPrint cannot write beside PDF/A, and removes
   the file association that it lists twice.

No PDF/A validator is packaged, so conformance is claimed by construction and not validated.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from evalkit.digests import digest_bytes, digest_code
from evalkit.errors import RunError
from evalkit.report import text
from evalkit.report.glyphs import FONTS, FONTS_DIR, font_css, vendored

_SCHEME = "evalkit-font:"
_AS_LIST = (
    "table, thead, tbody, tr, caption { display: block } th, td { display: inline; padding-right: 6pt }"
)
_UA_XMP = b"""<rdf:Description rdf:about="" xmlns:pdfuaid="http://www.aiim.org/pdfua/ns/id/"><pdfuaid:part>1</pdfuaid:part></rdf:Description>
<rdf:Description rdf:about="" xmlns:pdfaExtension="http://www.aiim.org/pdfa/ns/extension/" xmlns:pdfaSchema="http://www.aiim.org/pdfa/ns/schema#" xmlns:pdfaProperty="http://www.aiim.org/pdfa/ns/property#"><pdfaExtension:schemas><rdf:Bag><rdf:li rdf:parseType="Resource"><pdfaSchema:schema>PDF/UA identification schema</pdfaSchema:schema><pdfaSchema:namespaceURI>http://www.aiim.org/pdfua/ns/id/</pdfaSchema:namespaceURI><pdfaSchema:prefix>pdfuaid</pdfaSchema:prefix><pdfaSchema:property><rdf:Seq><rdf:li rdf:parseType="Resource"><pdfaProperty:name>part</pdfaProperty:name><pdfaProperty:valueType>Integer</pdfaProperty:valueType><pdfaProperty:category>internal</pdfaProperty:category><pdfaProperty:description>PDF/UA part number</pdfaProperty:description></rdf:li></rdf:Seq></pdfaSchema:property></rdf:li></rdf:Bag></pdfaExtension:schemas></rdf:Description>"""  # noqa: E501
_GENERATOR = '<meta name="generator" content="evalkit">'
_LIBRARIES = (
    "weasyprint", "pydyf", "pikepdf", "fonttools", "jinja2", "tinycss2", "tinyhtml5", "cssselect2", "pyphen",
    "pillow",
)  # fmt: skip
_DATE = re.compile(r'<meta name="dcterms\.created" content="([^"]*)">')


def render_pdf(html: str, out: Path, *, results_json: bytes) -> None:
    """Write the report as a PDF.

    Args:
        html: what `render_html` made.
        out: the PDF's path; replaced in one step.
        results_json: the run's results.json, byte for byte; becomes the attachment.

    Raises:
        RunError: the text layout library Pango is missing, or the file cannot be written.
    """
    drawn = draw_pdf(html, results_json=results_json)
    part = out.with_name(out.name + ".part")
    try:
        part.write_bytes(drawn)
        os.replace(part, out)
    except OSError as error:
        raise RunError(
            f"{out}: cannot be written ({error.strerror}); free space or choose another folder"
        ) from error


def draw_pdf(html: str, *, results_json: bytes) -> bytes:
    """The PDF's bytes; see `render_pdf`.

    Raises:
        RunError: the text layout library Pango is missing.
    """
    weasyprint = _weasyprint()
    source = with_vendored_glyphs(html).replace(
        _GENERATOR, f'<meta name="generator" content="{drawn_by()}">', 1
    )
    return _finished(_draw(weasyprint, source, results_json, _date_of(html)))


def drawn_by() -> str:
    """What decides a PDF's bytes besides the run: stands in it as its creator, so that a checker knows."""
    libraries = "".join(f"{name} {metadata.version(name)}\n" for name in _LIBRARIES)
    return f"evalkit, code {digest_code()[:16]}, libraries {digest_bytes(libraries.encode())[:16]}"


def with_vendored_glyphs(html: str) -> str:
    """`html` with every character that no vendored font holds written as its code point."""
    glyphs = vendored()
    return "".join(
        char if char in "\n\t\r" or ord(char) in glyphs else text.code_point(char) for char in html
    )


def _weasyprint() -> Any:
    """WeasyPrint, imported late: it needs Pango, and prints to stdout where Pango is missing."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import weasyprint
    except OSError as error:
        raise RunError(
            "report.pdf: the text layout library Pango was not found; install it "
            "(Debian: apt install libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0); report.html is "
            "complete"
        ) from error
    return weasyprint


def _fetcher(weasyprint: Any) -> Any:
    """A fetcher that knows the vendored fonts by exact name and nothing else."""
    from weasyprint.urls import URLFetcher, URLFetcherResponse

    known = {_SCHEME + face.file: FONTS_DIR / face.file for face in FONTS}

    class FontsOnly(URLFetcher):  # type: ignore[misc]  # WeasyPrint ships no types
        def fetch(self, url: str, headers: dict[str, str] | None = None) -> Any:
            if url not in known:
                raise ValueError("a report fetches nothing but its own fonts")
            return URLFetcherResponse(url, known[url].read_bytes(), {"Content-Type": "font/woff2"})

    return FontsOnly(allowed_protocols=(), allow_redirects=False)


def _draw(weasyprint: Any, html: str, results_json: bytes, created: datetime) -> bytes:
    """The PDF as WeasyPrint writes it; tables become lists if it trips over one (its issue 2719)."""
    try:
        return _layout(weasyprint, html, results_json, created, "")
    except IndexError:
        return _layout(weasyprint, html, results_json, created, _AS_LIST)


def _layout(weasyprint: Any, html: str, results_json: bytes, created: datetime, extra_css: str) -> bytes:
    from weasyprint.text.fonts import FontConfiguration

    fetcher, fonts = _fetcher(weasyprint), FontConfiguration()
    css = font_css(lambda face: _SCHEME + face.file) + extra_css
    sheet = weasyprint.CSS(string=css, font_config=fonts, url_fetcher=fetcher)
    attachment = weasyprint.Attachment(
        string=results_json,
        name="results.json",
        description="Every figure of this report and all samples",
        created=created,
        modified=created,
        relationship="Data",
        url_fetcher=fetcher,
    )
    document = weasyprint.HTML(string=html, url_fetcher=fetcher, base_url="evalkit-report:/")
    drawn = document.write_pdf(
        stylesheets=[sheet],
        font_config=fonts,
        attachments=[attachment],
        pdf_variant="pdf/a-3a",
        pdf_tags=True,
        pdf_identifier=hashlib.sha256(results_json).digest()[:16],
    )
    assert isinstance(drawn, bytes)
    return drawn


def _finished(drawn: bytes) -> bytes:
    """The PDF with the PDF/UA-1 identification and each associated file listed once."""
    import pikepdf

    with pikepdf.open(io.BytesIO(drawn)) as pdf:
        xmp = pdf.Root.Metadata.read_bytes().replace(b"</rdf:RDF>", _UA_XMP + b"</rdf:RDF>")
        pdf.Root.Metadata.write(xmp)
        if "/AF" in pdf.Root:
            seen = {entry.objgen: entry for entry in pdf.Root.AF}
            pdf.Root.AF = pikepdf.Array(list(seen.values()))
        pdf.Root.ViewerPreferences = pikepdf.Dictionary(DisplayDocTitle=True)
        out = io.BytesIO()
        pdf.save(out, deterministic_id=True, object_stream_mode=pikepdf.ObjectStreamMode.generate)
    return out.getvalue()


def _date_of(html: str) -> datetime:
    """The report's own fixed date, from its head; the epoch if it states none."""
    found = _DATE.search(html)
    with contextlib.suppress(ValueError):
        date = datetime.fromisoformat(found[1] if found else "")
        return date if date.tzinfo else date.replace(tzinfo=UTC)
    return datetime(1970, 1, 1, tzinfo=UTC)
