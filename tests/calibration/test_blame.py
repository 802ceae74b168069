"""Scripted episodes with one planted decisive turn: it is blamed, and nothing else."""

from __future__ import annotations

import pytest

from evalkit.calibration import blame
from evalkit.calibration.blame import blame_of, measure_blame, plant
from evalkit.calibration.calibrating import expected_of_blame


def test_the_planted_turn_and_agent_are_blamed_in_every_episode() -> None:
    found = measure_blame(seed=1, n=40)
    assert (found.n_right_turn, found.n_right_agent, found.n_both_blamed) == (40, 40, 0)
    assert all(e.holds for e in expected_of_blame(found))


def test_episodes_vary_in_place_agents_and_length() -> None:
    planted = [plant(n) for n in range(24)]
    assert len({p.turns for p in planted}) >= 4
    assert len({len(p.sample.episode.turns) for p in planted if p.sample.episode}) >= 4
    assert len({p.probe.spec.judged for p in planted}) == 2


def test_blaming_the_last_turn_instead_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalkit.credit.RELAY_SHARE", 1.0 + 1e-9)  # no earlier turn ever qualifies
    found = measure_blame(seed=1, n=10)
    assert found.n_right_turn < 10 and not expected_of_blame(found)[0].holds


def test_scripted_rollouts_are_made_once_and_marked_exact() -> None:
    found, ledger = blame_of(plant(3))
    assert found.decided and found.share == 1.0 and found.by == "replace"
    assert all(r.rollout is not None and r.rollout.exact for r in ledger)
    n_turns = len(plant(3).probe.spec.turns or ())  # type: ignore[arg-type]
    assert len(ledger) == 3 * n_turns
    assert blame.N_EPISODES >= 20
