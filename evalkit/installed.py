"""Which distributions evalkit runs with: its dependencies and theirs, as they are installed here."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from evalkit.records import Environment

DISTRIBUTION = "evalkit-audit"


def version() -> str:
    """Version of the installed evalkit."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+checkout"


def locked_distributions(root: str = DISTRIBUTION) -> dict[str, str]:
    """Distribution → version, over everything that `root` needs here, extras left out, sorted by name.

    Nothing else that is installed is named: a list of a machine's packages says more than an audit needs.
    """
    found: dict[str, str] = {}
    todo = [root]
    while todo:
        name = canonicalize_name(todo.pop())
        if name in found:
            continue
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # not needed on this platform, or evalkit runs from a bare checkout
        found[name] = distribution.version
        wanted = [Requirement(text) for text in distribution.requires or ()]
        todo += [w.name for w in wanted if w.marker is None or w.marker.evaluate({"extra": ""})]
    found.pop(canonicalize_name(root), None)
    return dict(sorted(found.items()))


def lock_text(environment: Environment) -> str:
    """requirements.lock of a run: all distributions that evalkit needs, or the main ones it recorded."""
    complete = "every distribution that evalkit needs" if environment.lock else "the main distributions only"
    lock = [f"# As the run recorded them: {complete}.", f"{DISTRIBUTION}=={environment.evalkit}"]
    lock += [f"{name}=={v}" for name, v in sorted((environment.lock or environment.packages).items())]
    return "\n".join((*lock, ""))
