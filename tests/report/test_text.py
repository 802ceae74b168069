import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalkit.report import text


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("a\ud800b", "a⟨U+D800⟩b"),
        ("a\x00b\x1b[31m", "a⟨U+0000⟩b⟨U+001B⟩[31m"),
        ("zero\u200bwidth", "zero⟨U+200B⟩width"),
        ("\U000e0041", "⟨U+E0041⟩"),
        ("line\r\nbreak\ttab", "line\nbreak\ttab"),
        ("lone\rreturn", "lone⟨U+000D⟩return"),
        ("Zürich ✓ 北京", "Zürich ✓ 北京"),
    ],
)
def test_what_a_reader_cannot_see_is_written_as_its_code_point(raw: str, shown: str) -> None:
    assert text.printable(raw) == shown


def test_a_tower_of_combining_marks_is_written_out() -> None:
    shown = text.printable("a" + "\u0301" * 9)
    assert shown.count("\u0301") == 4
    assert shown.count("⟨U+0301⟩") == 5


@given(st.text(st.characters(codec=None)))
def test_printable_text_has_no_control_bidi_or_surrogate_and_is_stable(raw: str) -> None:
    shown = text.printable(raw)
    shown.encode("utf-8")
    assert not set(shown) & set("\x00\x07\x1b\u200b\u200e\u202a\u202e\u2066\u2069\ufeff")
    assert text.printable(shown) == shown


def test_a_cut_text_says_how_much_is_missing() -> None:
    assert text.clipped("x" * 30, 10) == "x" * 10 + " … [20 more characters in results.json]"
    assert text.clipped("x" * 10, 10) == "x" * 10


def test_a_rate_never_stands_without_counts_interval_and_method() -> None:
    words = text.rate_text(5, 40, 0.0547, 0.2611, "wilson")
    assert words.replace("\u00a0", " ") == "5 of 40, 12.5 % (95 % interval 5.5–26.1 %, Wilson score)"


def test_zero_failures_print_an_upper_bound() -> None:
    words = text.rate_text(0, 40, 0.0, 0.0881, "wilson").replace("\u00a0", " ")
    assert words == "0 of 40; at most 8.8 % (upper bound of the 95 % interval, Wilson score)"


def test_no_samples_print_no_rate() -> None:
    assert "%" not in text.rate_text(0, 0, None, None, "wilson")


def test_what_was_not_measured_is_said_in_words() -> None:
    assert (
        text.percent(None)
        == text.number(None)
        == text.count(None)
        == text.interval(None, 0.1)
        == "not measured"
    )
    assert text.stated(None) == text.digest("") == text.short_digest(None) == "NOT STATED"


def test_effects_carry_a_sign_and_never_a_negative_zero() -> None:
    assert [text.nats(v) for v in (2.951, -0.4, -0.001, 0.0)] == ["+2.95", "−0.40", "0.00", "0.00"]
    assert text.nats(None) == "–"


def test_names_stay_on_one_line_and_are_cut() -> None:
    assert text.name("a\nb\u202e") == "a b⟨U+202E⟩"
    assert text.name("x" * 130) == "x" * 120 + "…"


def test_the_level_of_an_interval_is_not_said_twice() -> None:
    assert text.method_name("Wilson score, 95 %") == text.method_name("wilson") == "Wilson score"


def test_white_space_of_a_token_is_visible() -> None:
    assert text.token(" Lyon\n") == "␣Lyon⏎"
    assert text.token("") == "∅"
