"""What is fixed before the first forward: samples, batches, halves, SAEs, controls, options."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_audit import Material, material, random_sae, rich, write_suite

from evalkit import planning
from evalkit.digests import digest_file
from evalkit.errors import ConfigError, ModelError, SaeError, SuiteError
from evalkit.models.text import TextModel
from evalkit.planning import Options, Prepared, prepare
from evalkit.records import ChatMessage, SaeCard, SaeQuality, Sample
from evalkit.saes import catalogue
from evalkit.saes.loaders import save_native
from evalkit.splits import held_out_groups

UNMEASURED = SaeQuality(
    explained_variance=None, l0=None, ce_recovered_zero=None, ce_recovered_mean=None, dead_share=None
)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return material(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def _no_forward(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Planning never runs the model."""
    ran: list[int] = []
    monkeypatch.setattr(TextModel, "_forward", lambda *_rest, **_more: ran.append(1))
    yield
    assert not ran


def planned(options: Options) -> Prepared:
    return prepare(options, lambda _step: None)


def sae_folder(folder: Path, layer: int, model_sha256: str | None) -> Path:
    hook = f"layers.{layer}"
    card = SaeCard(
        hook=hook,
        architecture="topk",
        d_model=32,
        d_sae=96,
        k=6,
        model_sha256=model_sha256,
        quality=UNMEASURED,
    )
    return save_native(random_sae(hook, layer), folder, card=card)


# --------------------------------------------------------------------------------- samples and batches


def test_the_same_options_give_the_same_plan_and_nothing_is_written(made: Material, tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite", made, rich())
    before = sorted(tmp_path.rglob("*"))
    first, again = (planned(Options(suite, out=tmp_path / "run")).plan for _ in range(2))
    assert first == again and sorted(tmp_path.rglob("*")) == before
    assert planned(Options(suite, seed=1)).plan != first


def test_batches_hold_every_sample_once_by_probe_and_length(
    made: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "BATCH_SIZE", 4)
    found = planned(Options(write_suite(tmp_path, made, rich())))
    batches = found.plan.batches
    assert sorted(i for b in batches for i in b.samples) == sorted(s.id for s in found.plan.samples)
    assert len({b.id for b in batches}) == len(batches) and max(len(b.samples) for b in batches) == 4
    for batch in batches:
        assert {found.samples[i].probe for i in batch.samples} == {batch.probe}
    for probe in ("claims", "mute", "wild"):
        lengths = [len(found.prompts[i].ids) for b in batches if b.probe == probe for i in b.samples]
        assert lengths == sorted(lengths)


def test_the_halves_are_split_by_group_so_that_twins_and_contexts_stay_together(
    made: Material, tmp_path: Path
) -> None:
    suite = write_suite(tmp_path, made, rich())
    halves = set()
    for seed in range(4):
        plan = planned(Options(suite, seed=seed)).plan
        groups = {s.group for s in plan.samples}
        held_out = set(plan.held_out_groups)
        assert held_out < groups and len(held_out) == len(groups) // 2
        sides: dict[str, set[bool]] = {}
        for sample in plan.samples:
            written = sample.id.partition("@")[0].removesuffix("-twin")
            sides.setdefault(written, set()).add(sample.group in held_out)
        assert all(len(side) == 1 for side in sides.values())
        halves.add(plan.held_out_groups)
    assert len(halves) > 1


@given(st.sets(st.text(min_size=1, max_size=5), max_size=30), st.floats(0.01, 0.99), st.integers(0, 9))
def test_the_held_out_share_is_as_asked_whatever_the_groups(
    groups: set[str], share: float, seed: int
) -> None:
    message = ChatMessage(role="user", content="why?")
    samples = [
        Sample(id=f"s{n}", probe="p", failure_mode="f", group=group, messages=(message,))
        for n, group in enumerate(sorted(groups))
    ]
    held_out = held_out_groups(samples, share, seed)
    assert set(held_out) <= groups and len(held_out) == round(share * len(groups))
    assert held_out_groups(reversed(samples), share, seed) == held_out


def test_sizes_end_where_the_measurements_end() -> None:
    assert planning.sizes_within((1, 2, 4, 8, 16, 32), 16) == (1, 2, 4, 8, 16)
    assert planning.sizes_within((1, 2, 4), 3) == (1, 2)
    assert planning.sizes_within((4, 16), 3) == (3,)


def test_the_plan_names_suite_model_and_saes_by_digest(made: Material, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, made)
    plan = planned(Options(suite)).plan
    assert [f.sha256 for f in plan.suite_files] == [digest_file(suite).sha256]
    assert plan.model_sha256 == digest_file(made.model / "model.safetensors").sha256
    assert plan.sae_sha256 == {
        f"layers.{n}": digest_file(made.saes / f"l{n}" / "sae.safetensors").sha256 for n in (1, 2)
    }
    assert plan.grid["frozen_random_seeds"] == ("0", "1", "2", "3", "4")
    assert {"min_held_out_failures", "necessity_share", "minimum_effect"} <= set(plan.thresholds)


def test_a_prompt_that_is_too_long_is_refused_before_anything_runs(made: Material, tmp_path: Path) -> None:
    probe = {"id": "p", "failure_mode": "f", "kind": "generate", "scorer": "refusal", "prompt": "{{ input }}"}
    suite = write_suite(tmp_path, made, probes=[{**probe, "samples": [{"id": "long", "input": "?! " * 300}]}])
    with pytest.raises(SuiteError, match=r"sample 'long': .* leave no room in a context of 256"):
        planned(Options(suite))


# -------------------------------------------------------------------------------------------- SAEs


def test_saes_are_ordered_by_depth_however_they_are_listed(made: Material, tmp_path: Path) -> None:
    turned = [{"ref": str(made.saes / f"l{n}"), "hook": f"layers.{n}"} for n in (2, 1)]
    found = planned(Options(write_suite(tmp_path, made, saes=turned)))
    assert list(found.saes) == [r.hook for r in found.sae_records] == ["layers.1", "layers.2"]


def test_a_folder_of_saes_or_one_sae_replaces_those_of_the_suite(made: Material, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, made, saes=[])
    assert planned(Options(suite)).saes == {}
    assert list(planned(Options(suite, saes=made.saes)).saes) == ["layers.1", "layers.2"]
    assert list(planned(Options(suite, saes=made.saes / "l2")).saes) == ["layers.2"]


def test_two_saes_at_one_hook_are_refused(made: Material, tmp_path: Path) -> None:
    for name in "ab":
        save_native(random_sae("layers.1", 0), tmp_path / "saes" / name)
    with pytest.raises(ConfigError, match=r"two SAEs read 'layers\.1'; keep one per hook"):
        planned(Options(write_suite(tmp_path, made), saes=tmp_path / "saes"))


def test_a_family_is_a_folder_of_sae_folders_or_a_catalogue_name_without_the_hook(
    made: Material, tmp_path: Path
) -> None:
    whole = planned(Options(write_suite(tmp_path, made, saes=[{"ref": str(made.saes), "hook": "auto"}])))
    assert list(whole.saes) == ["layers.1", "layers.2"]
    assert [r.ref for r in whole.sae_records] == [f"{made.saes}/l1", f"{made.saes}/l2"]
    assert whole.plan.grid["auto_hooks"] == ("layers.1", "layers.2")
    assert set(whole.plan.sae_sha256) == {"layers.1", "layers.2"}, "all are opened and fixed"
    found = catalogue.family("smollm2-135m-instruct-q4_1")
    assert [p.name for p in found] == ["layers.10", "layers.16", "layers.22", "layers.27"]


def test_auto_with_one_sae_is_the_hook_that_it_states(made: Material, tmp_path: Path) -> None:
    found = planned(
        Options(write_suite(tmp_path, made, saes=[{"ref": str(made.saes / "l2"), "hook": "auto"}]))
    )
    assert list(found.saes) == ["layers.2"] and found.plan.grid["auto_hooks"] == ()
    assert [r.ref for r in found.sae_records] == [str(made.saes / "l2")]


def test_families_and_named_saes_stand_side_by_side(made: Material, tmp_path: Path) -> None:
    for name, layer in (("x", 0), ("y", 3)):
        save_native(random_sae(f"layers.{layer}", layer), tmp_path / "more" / name)
    refs = [
        {"ref": str(tmp_path / "more"), "hook": "auto"},
        {"ref": str(made.saes / "l1"), "hook": "layers.1"},
        {"ref": str(made.saes / "l2"), "hook": "auto"},
    ]
    found = planned(Options(write_suite(tmp_path / "suite", made, saes=refs)))
    assert list(found.saes) == [f"layers.{n}" for n in range(4)]
    assert found.plan.grid["auto_hooks"] == ("layers.0", "layers.3")


def test_every_sae_of_a_family_is_checked_before_anything_runs(made: Material, tmp_path: Path) -> None:
    save_native(random_sae("layers.1", 0, width=16), tmp_path / "family" / "narrow")
    save_native(random_sae("layers.2", 0), tmp_path / "family" / "right")
    refs = [{"ref": str(tmp_path / "family"), "hook": "auto"}]
    with pytest.raises(SaeError, match="the SAE reads width 16, the model has 32"):
        planned(Options(write_suite(tmp_path / "suite", made, saes=refs)))
    (tmp_path / "empty").mkdir()
    refs = [{"ref": str(tmp_path / "empty"), "hook": "auto"}]
    with pytest.raises(SaeError, match="found no file; an SAE folder holds"):
        planned(Options(write_suite(tmp_path / "suite", made, saes=refs)))


def test_the_plan_fixes_what_the_sweep_covers(made: Material, tmp_path: Path) -> None:
    grid = planned(Options(write_suite(tmp_path, made))).plan.grid
    assert {"layers.1", "layers.2"} <= set(grid["locate_hooks"]) and len(grid["locate_failures"]) == 2
    assert planned(Options(write_suite(tmp_path, made, saes=[]))).plan.grid["locate_hooks"] == ()


def test_saes_of_another_model_are_left_out_when_model_is_given(made: Material, tmp_path: Path) -> None:
    own = digest_file(made.model / "model.safetensors").sha256
    sae_folder(tmp_path / "own", 1, own)
    sae_folder(tmp_path / "foreign", 2, "0" * 64)
    refs = [{"ref": "own", "hook": "layers.1"}, {"ref": "foreign", "hook": "layers.2"}]
    suite = write_suite(tmp_path, made, saes=refs)
    assert list(planned(Options(suite, model=str(made.model))).saes) == ["layers.1"]
    assert planned(Options(suite, model=str(made.other))).saes == {}


def test_an_sae_that_does_not_fit_is_refused_where_it_was_asked_for(made: Material, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, made)
    with pytest.raises(SaeError, match="the SAE reads width 32, the model has 16"):
        planned(Options(suite, model=str(made.other), saes=made.saes))


def test_controls_are_five_random_saes_coordinates_and_directions(made: Material, tmp_path: Path) -> None:
    found = planned(Options(write_suite(tmp_path, made)))
    streams = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    controls = planning.control_coders(found.saes, found.plan, lambda _hook: streams)
    kinds = [(c.kind, c.seed) for c in controls]
    assert kinds[:5] == [("frozen_random", n) for n in range(5)]
    assert [kind for kind, _ in kinds[5:]] == ["residual_coordinate", "random_direction"]
    for control in controls:
        assert list(control.saes) == list(found.saes)
        assert not torch.equal(control.saes["layers.1"].W_dec, found.saes["layers.1"].W_dec)


# ---------------------------------------------------------------------------------- taken up again


def test_the_options_of_a_run_are_read_back_from_its_manifest(
    made: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_suite(tmp_path, made)
    monkeypatch.chdir(tmp_path)
    asked = Options(
        Path("suite.yaml"), "some-model", Path("saes"), Path("run"), 3, 5, "cpu", "bfloat16", offline=True
    )
    record = json.loads(json.dumps(planning.options_record(asked, tmp_path / "run")))
    assert not {"out", "resume", "offline"} & set(record)
    monkeypatch.chdir("/")
    back = planning.options_from(record, tmp_path / "run")
    expected = asked._replace(
        suite=tmp_path / "suite.yaml",
        saes=tmp_path / "saes",
        out=tmp_path / "run",
        resume=True,
        offline=False,
    )
    assert back == expected
    bare = planning.options_from(
        planning.options_record(Options(tmp_path / "suite.yaml"), tmp_path), tmp_path
    )
    assert bare.saes is None and bare.model is None and bare.limit is None


def test_a_relative_model_is_found_in_the_suites_folder(
    made: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = copy.deepcopy(rich())
    path = write_suite(tmp_path / "suite", made, suite, model={"ref": "weights", "modality": "text"}, saes=[])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="weights: no such model"):
        planned(Options(path))
    (tmp_path / "suite" / "weights").symlink_to(made.model)
    assert planned(Options(path)).plan.model_ref == "weights"
