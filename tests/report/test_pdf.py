import hashlib
import http.server
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pikepdf
import pypdf
import pytest
import synthetic
from payloads import PAYLOADS, infected

from evalkit.errors import RunError
from evalkit.report import build_view, pdf, render_html, render_pdf

SECRET = "THE-CONTENT-OF-A-LOCAL-FILE"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def reader(drawn: Path) -> pypdf.PdfReader:
    return pypdf.PdfReader(drawn / "report.pdf")


def text_of(reader: pypdf.PdfReader) -> str:
    return "\n".join(page.extract_text() for page in reader.pages).replace("\u00a0", " ")


def titles(outline: list[object]) -> list[str]:
    return [str(getattr(item, "title", "")) for item in outline if not isinstance(item, list)]


def test_the_pdf_holds_every_section_in_its_outline_and_text(reader: pypdf.PdfReader) -> None:
    assert titles(list(reader.outline)) == [
        "Control page",
        "1 Summary",
        "2 Object of the audit",
        "3 Scope and threat model",
        "4 Method",
        "5 Environment",
        "6 Results",
        "7 Attribution",
        "8 Interpretation and limits",
        "9 Mitigation and monitoring",
        "A1 Requirement map",
        "A2 Item index",
        "A3 How to verify",
        "A4 Glossary and formulas",
        "A5 Attachments",
    ]
    words = text_of(reader)
    for phrase in (
        "FAIL",
        "INCONCLUSIVE",
        "identity with upstream not verified",
        "evalkit verify report.pdf",
        "PROVIDER MUST SUPPLY",
        "What this audit does not show",
        "self-attested",
        "Samples that nobody chose",
        "does not beat the frozen-random floor",
        "no label",
        "Promotes",
    ):
        assert phrase in words, phrase


def test_the_summary_takes_one_page(reader: pypdf.PdfReader) -> None:
    heads = [page.extract_text().split("\n") for page in reader.pages]
    assert sum("1 Summary" in "\n".join(lines[:3]) for lines in heads) == 1


def test_the_table_of_contents_names_true_pages(reader: pypdf.PdfReader) -> None:
    contents = reader.pages[1].extract_text()
    number = 1 + next(
        i for i, page in enumerate(reader.pages) if i > 1 and "Results\nFrom planned" in page.extract_text()
    )
    line = next(line for line in contents.split("\n") if "Results" in line)
    assert line.rstrip().endswith(f" {number}")


def test_results_json_is_attached_byte_for_byte_and_its_digest_is_on_the_cover(
    drawn: Path, reader: pypdf.PdfReader
) -> None:
    raw = (drawn / "results.json").read_bytes()
    assert {name: files[0] for name, files in reader.attachments.items()} == {"results.json": raw}
    assert hashlib.sha256(raw).hexdigest() in reader.pages[0].extract_text().replace("\n", "")


def test_the_pdf_is_tagged_and_says_what_it_conforms_to(drawn: Path) -> None:
    with pikepdf.open(drawn / "report.pdf") as file:
        assert file.Root.MarkInfo.Marked
        assert "/StructTreeRoot" in file.Root
        assert str(file.Root.Lang) == "en"
        assert len(file.Root.AF) == 1
        assert file.Root.ViewerPreferences.DisplayDocTitle
        metadata = file.Root.Metadata.read_bytes()
        with file.open_metadata() as xmp:
            assert xmp.pdfa_status == "3A"
        assert b"<pdfuaid:part>1</pdfuaid:part>" in metadata


def test_figures_have_words_for_those_who_cannot_see_them(drawn: Path) -> None:
    with pikepdf.open(drawn / "report.pdf") as file:
        figures = [o for o in file.objects if isinstance(o, pikepdf.Dictionary) and o.get("/S") == "/Figure"]
        assert figures
        assert all(str(figure.get("/Alt", "")) for figure in figures)


def test_only_vendored_fonts_are_used(drawn: Path) -> None:
    with pikepdf.open(drawn / "report.pdf") as file:
        names = {str(f.BaseFont) for page in file.pages for f in page.Resources.get("/Font", {}).values()}
    assert names
    assert all("+Evalkit-" in name for name in names), names


def test_a_character_without_a_vendored_glyph_is_written_as_its_code_point() -> None:
    assert pdf.with_vendored_glyphs("北a✓é") == "⟨U+5317⟩a✓é"


def test_the_same_run_gives_the_same_bytes_in_another_process(drawn: Path, tmp_path: Path) -> None:
    for name in ("results.json", "plan.json", "gate.json"):
        (tmp_path / name).write_bytes((drawn / name).read_bytes())
    env = {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "77", "PYTHONPATH": str(ROOT)}
    code = "import sys, pathlib, evalkit.report; evalkit.report.write_report(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=env, cwd=tmp_path)
    for name in ("report.html", "report.pdf"):
        assert (tmp_path / name).read_bytes() == (drawn / name).read_bytes(), name


@pytest.fixture
def host() -> Iterator[tuple[int, list[str]]]:
    """A local server that notes every request."""
    calls: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            calls.append(self.path)
            self.send_error(404)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1], calls
    server.shutdown()
    thread.join()


def armed(payload: str, port: int, secret: Path) -> str:
    return payload.replace("{port}", str(port)).replace("{secret}", str(secret))


def leaks(data: bytes) -> list[str]:
    reader = pypdf.PdfReader(io.BytesIO(data))
    found = [] if list(reader.attachments) == ["results.json"] else [f"attached: {list(reader.attachments)}"]
    if SECRET in text_of(reader):
        found.append("a local file was printed")
    for files in reader.attachments.values():
        found += ["a local file was embedded" for file in files if SECRET.encode() in file]
    return found


def test_no_payload_reads_a_file_or_calls_out_even_unescaped(
    host: tuple[int, list[str]], tmp_path: Path
) -> None:
    """The second wall alone: markup that got past the templates meets a fetcher that refuses."""
    port, calls = host
    secret = tmp_path / "secret.svg"
    secret.write_text(f"<svg xmlns='http://www.w3.org/2000/svg'><text y='9'>{SECRET}</text></svg>")
    assert len(PAYLOADS) >= 19
    for number in range(0, len(PAYLOADS), 5):
        payload = "\n".join(armed(p, port, secret) for p in PAYLOADS[number : number + 5])
        page = f"<html lang='en'><head><title>x</title></head><body><p>x</p>{payload}</body></html>"
        out = tmp_path / f"{number}.pdf"
        render_pdf(page, out, results_json=b"{}")
        assert leaks(out.read_bytes()) == [], payload
    assert calls == []


def test_a_report_full_of_payloads_prints_them_and_leaks_nothing(
    host: tuple[int, list[str]], tmp_path: Path
) -> None:
    port, calls = host
    secret = tmp_path / "secret.svg"
    secret.write_text(SECRET)
    results, plan, gate = synthetic.build(n_items=2)
    payload = "\u202e" + "\n".join(armed(p, port, secret) for p in PAYLOADS)[:700]
    html = render_html(build_view(infected(results, payload), plan, gate=gate))
    out = tmp_path / "report.pdf"
    render_pdf(html, out, results_json=b"{}")
    assert leaks(out.read_bytes()) == []
    assert calls == []
    words = "".join(text_of(pypdf.PdfReader(out)).split())
    assert "<script>fetch(" in words
    assert "⟨U+202E⟩" in words
    with pikepdf.open(out) as file:
        actions = [o for o in file.objects if isinstance(o, pikepdf.Dictionary) and "/URI" in o]
    assert actions == []


def test_a_table_that_trips_the_layout_is_drawn_as_a_list(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real, sheets = pdf._layout, []

    def tripping(module: object, html: str, data: bytes, created: object, extra: str) -> bytes:
        sheets.append(extra)
        if not extra:
            raise IndexError("list index out of range")
        return real(module, html, data, created, extra)  # type: ignore[arg-type]

    monkeypatch.setattr(pdf, "_layout", tripping)
    page = "<html lang='en'><title>t</title><table><tr><td>kept</td></tr></table></html>"
    render_pdf(page, tmp_path / "x.pdf", results_json=b"{}")
    assert "display: block" in sheets[1]
    assert "kept" in text_of(pypdf.PdfReader(tmp_path / "x.pdf"))


def test_a_missing_pango_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    import builtins

    real = builtins.__import__

    def missing(name: str, *args: object, **kwargs: object) -> object:
        if name == "weasyprint":
            raise OSError("cannot load library 'libpango-1.0-0'")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(RunError, match=r"Pango was not found; install it \(Debian: apt install libpango"):
        render_pdf("<p>x", tmp_path / "x.pdf", results_json=b"{}")


def test_a_pdf_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"x\.pdf: cannot be written \(No such file"):
        render_pdf(
            "<html lang='en'><title>t</title><p>x</html>", tmp_path / "none" / "x.pdf", results_json=b"{}"
        )
