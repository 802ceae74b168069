"""How training stands on the screen, and in a log."""

from __future__ import annotations

import pytest
from rich.console import Console

from evalkit import cli_console, cli_training
from evalkit.cli_training import training_display, training_line, training_table
from evalkit.saes.training import Live, Progress

STEP = Progress(
    12_288, 1.5e-3, {"layers.1.seed0": Live(0.8123, 31.96, 1204), "layers.2.seed0": Live(0.5, 8, 0)}
)


def test_the_table_has_a_row_per_sae_below_what_they_share() -> None:
    console = Console(width=120)
    with console.capture() as shown:
        console.print(training_table(STEP, 3_000_000, 1200.0))
    text = " ".join(shown.get().split())
    for part in (
        "12,288 of 3,000,000 positions, 1,200 per second, 0:41:30 left, learning rate 0.0015",
        "layers.1.seed0 │ 0.812 │ 32.0 │ 1,204",
        "layers.2.seed0 │ 0.500 │ 8.0 │ 0",
    ):
        assert part in text


def test_a_line_says_the_same_and_no_speed_before_it_is_known() -> None:
    assert training_line(STEP, 3_000_000, None) == (
        "12,288 of 3,000,000 positions, learning rate 0.0015; "
        "layers.1.seed0: explained variance 0.812, L0 32.0, 1204 dead; "
        "layers.2.seed0: explained variance 0.500, L0 8.0, 0 dead"
    )


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_gets_a_table_and_a_log_gets_lines(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(width=120, force_terminal=terminal, record=True)
    for module in (cli_console, cli_training):
        monkeypatch.setattr(module, "err", console)
    monkeypatch.setattr(cli_training, "LINE_EVERY_S", 3600.0)
    with console.capture() as shown, training_display(20_000) as (_, live):
        live(STEP)
        live(STEP._replace(tokens=16_000))
        live(STEP._replace(tokens=20_000))
    text = shown.get()
    assert ("┃" in text) == terminal
    if not terminal:
        lines = text.splitlines()
        assert len(lines) == 2, "the first, none within the hour, the last"
        assert lines[0].startswith("12,288 of 20,000 positions, learning rate")
        assert lines[1].startswith("20,000 of 20,000 positions, ")
        assert "0:00:00 left" in lines[1]
