"""The pytest plugin: an audit passes or fails a test, and loading the plugin loads no torch."""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path
from typing import Any

import pandas.core.arrays.arrow.extension_types  # noqa: F401  # registers itself, and once only
import pytest
from tiny_audit import FAILS, PASSES, UNDECIDED, material, write_policy, write_suite

pytest_plugins = ["pytester"]

INSTALLED = any(e.value == "evalkit.pytest_plugin" for e in importlib.metadata.entry_points(group="pytest11"))
ARGUMENTS = ("-q", "-p", "no:cacheprovider", *(() if INSTALLED else ("-p", "evalkit.pytest_plugin")))


def project(
    pytester: pytest.Pytester, base: Path, rule: dict[str, Any] | None, marker: str, body: str = "pass"
) -> None:
    suite = write_suite(pytester.path, material(base), saes=[])
    shutil.move(suite, pytester.path / "small.yaml")
    if rule is not None:
        write_policy(pytester.path / "policy.yaml", rule)
    pytester.makepyfile(
        f"import pytest\n@pytest.mark.evalkit_audit({marker})\ndef test_it(evalkit_audit):\n    {body}\n"
    )


@pytest.fixture
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


MARKER = "suite='small.yaml', policy='policy.yaml', limit=2"


def test_an_audit_that_passes_hands_its_results_to_the_test(pytester: pytest.Pytester, base: Path) -> None:
    body = "assert evalkit_audit.results.failure_modes[0].n == 2 and evalkit_audit.files[0].is_file()"
    project(pytester, base, PASSES, MARKER, body)
    pytester.runpytest_inprocess(*ARGUMENTS).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({**PASSES, "max": 0.0, "bound": "estimate"}, "*FAIL rate:*"),
        (UNDECIDED, "*INCONCLUSIVE few:*(1000 samples would decide)*"),
        (FAILS, "*INCONCLUSIVE share:*the run has no SAE*"),
    ],
    ids=["fail", "too few", "no SAE"],
)
def test_anything_but_a_pass_fails_the_test(
    pytester: pytest.Pytester, base: Path, rule: dict[str, Any], words: str
) -> None:
    project(pytester, base, rule, MARKER)
    result = pytester.runpytest_inprocess(*ARGUMENTS)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([words])


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ("policy='policy.yaml'", "*suite: give it by name; known: suite, policy*"),
        ("'small.yaml'", "*suite: give it by name*"),
        ("suite='small.yaml', polcy='p'", "*polcy: no such argument*"),
        ("suite='absent.yaml'", "*absent.yaml: no such file and no shipped suite*"),
        ("suite='small.yaml'", "*small.yaml: names no policy, so nothing can pass*"),
    ],
)
def test_a_wrong_marker_is_an_error_that_says_so(
    pytester: pytest.Pytester, base: Path, marker: str, words: str
) -> None:
    project(pytester, base, PASSES, marker)
    result = pytester.runpytest_inprocess(*ARGUMENTS)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([words])


def test_the_fixture_without_its_marker_is_an_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(evalkit_audit):\n    pass\n")
    result = pytester.runpytest_inprocess(*ARGUMENTS)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*the fixture needs its marker*"])


def test_loading_the_plugin_loads_no_torch_and_makes_the_marker_known(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import sys, pytest\n@pytest.mark.evalkit_audit(suite='x')\n"
        "def test_it(pytestconfig):\n"
        "    assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
        "    assert pytestconfig.pluginmanager.hasplugin('evalkit') or \\\n"
        "        'evalkit.pytest_plugin' in sys.modules\n"
    )
    result = pytester.runpytest_subprocess(*ARGUMENTS, "--strict-markers")
    result.assert_outcomes(passed=1)
