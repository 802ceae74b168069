"""The verbs of the evidence pack: keygen, pack, verify. `cli.py` registers them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from evalkit.errors import ConfigError, EvidenceError

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner

    from evalkit.evidence.checks import Check
    from evalkit.evidence.packing import Packed
    from evalkit.evidence.pades import Certificate
    from evalkit.models.cache import Progress, Step

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, highlight=False)
PASSPHRASE = "EVALKIT_PADES_PASSPHRASE"


def keygen(
    out_dir: Annotated[Path, typer.Option("--out", "-o", help="Folder for the two files.")] = Path("."),
) -> None:
    """Make an ed25519 key pair for signing evidence packs.

    Keep evalkit-signing.key (mode 600) to yourself; hand evalkit-signing.pub to those who will verify, by
    another way than the pack.
    """
    from evalkit.evidence.keys import make_keys

    made = make_keys(out_dir)
    out.print(f"private: {escape(str(made.private))}  (keep it; it never goes into a pack)")
    out.print(f"public:  {escape(str(made.public))}  (hand it over apart from the pack)")
    out.print(f"key id:  {made.key_id}")


def pack(
    run_dir: Annotated[Path, typer.Argument(help="A finished run directory.")],
    out_dir: Annotated[Path, typer.Option("--out", "-o", help="The pack: a new or empty folder.")],
    key: Annotated[
        Path | None, typer.Option("--key", "-k", help="Sign with this private key (`evalkit keygen`).")
    ] = None,
    suite: Annotated[
        Path | None, typer.Option("--suite", help="The suite's file, if it moved since the run.")
    ] = None,
    pades: Annotated[
        Path | None,
        typer.Option(
            "--pades",
            help=f"A PKCS#12 certificate: add report.signed.pdf. Its passphrase is read from ${PASSPHRASE}.",
        ),
    ] = None,
    redact: Annotated[
        Path | None,
        typer.Option("--redact", help="Withhold items: a YAML file with one line 'item id: reason' each."),
    ] = None,
) -> None:
    """Pack a run into one folder that a stranger can check: records, suite, report, exports, signature.

    Example: evalkit pack runs/mine --out pack --key evalkit-signing.key
    """
    from evalkit.evidence.keys import load_signer
    from evalkit.evidence.packing import pack_run
    from evalkit.evidence.pades import Certificate

    if not run_dir.is_dir():
        raise ConfigError(f"{run_dir}: no such run directory; name one that `evalkit audit` made")
    certificate = Certificate(pades, os.environ.get(PASSPHRASE, "")) if pades is not None else None
    signer = load_signer(key) if key is not None else None
    if redact is not None:
        made = _pack_redacted(run_dir, out_dir, redact, signer, suite, certificate)
    else:
        made = pack_run(run_dir, out_dir, signer=signer, suite=suite, certificate=certificate)
    out.print(f"{escape(str(made.folder))}: {made.n_files} files, SHA256SUMS {made.sha256}")
    if made.key_id is None:
        out.print(
            "UNSIGNED: nothing in this pack says who made it. Sign with --key (`evalkit keygen` makes one)."
        )
    else:
        out.print(f"signed by {made.key_id}; hand the public key over apart from the pack")
    out.print(f"Next: evalkit verify {escape(str(made.folder))}" + (" --signer KEY.pub" if key else ""))


def _pack_redacted(
    run_dir: Path,
    out_dir: Path,
    redact: Path,
    signer: CryptoSigner | None,
    suite: Path | None,
    certificate: Certificate | None,
) -> Packed:
    from evalkit.evidence.redaction import pack_redacted, read_items

    if certificate is not None:
        raise ConfigError("--pades: not with --redact; sign the pack with --key")
    done = pack_redacted(run_dir, out_dir, read_items(redact), signer=signer, suite=suite)
    out.print(f"{escape(str(done.openings))}: salts and withheld texts; keep it, it is not part of the pack")
    if done.shared:
        out.print(
            f"NOTE: a text of these also stands in items not withheld: {escape(', '.join(done.shared))}"
        )
    return done.pack


def verify(
    target: Annotated[Path, typer.Argument(help="A pack, a run directory, or the report.pdf inside one.")],
    signer: Annotated[
        Path | None,
        typer.Option("--signer", help="Public key that must have signed, obtained apart from the pack."),
    ] = None,
    level: Annotated[
        int | None, typer.Option("--level", "-l", min=1, max=5, help="How far to check. Default: 3.")
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples", "-n", min=1, help="Level 4: how many samples are answered again.")
    ] = 16,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Level 4: which samples.")] = 0,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Levels 4 and 5: where the run's model lies, if it moved."),
    ] = None,
    saes: Annotated[
        Path | None, typer.Option("--saes", help="Levels 4 and 5: where the run's SAEs lie, if they moved.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never use the network.")] = False,
) -> None:
    """Check a pack or run: digests, signature, every figure, the report's bytes, and samples run again.

    Level 1: digests and signature. 2: every count, interval and circuit computed again from the records.
    3: report and exports drawn again, byte for byte. 4: some samples answered again with the weights, which
    must have the run's digests: outcomes equal, margins within 0.001 nats. 5: the whole audit again.
    Exit 0: clean; 1: a check failed, or a level asked for was not reached. Without --signer a signature
    shows that the pack is whole, not who made it.
    """
    from evalkit.evidence.checks import MEANING, level_reached, why_not_higher
    from evalkit.verify import verify as run_checks

    checks: list[Check] = []

    def show(check: Check) -> None:
        checks.append(check)
        out.print(f"level {check.level}  {check.word}: {escape(check.sentence)}")

    for check in run_checks(target, level=min(level or 3, 3), signer=signer):
        show(check)
    if level is not None and level > 3:
        from evalkit.rerun import rerun

        again = rerun(
            target, level, _told(), n_samples=samples, seed=seed, model=model, saes=saes, offline=offline
        )
        for check in again:
            show(check)
    reached = level_reached(checks)
    if level is not None and reached < level:
        raise EvidenceError(f"{target}: level {level} was asked for, level {reached} reached; see above")
    meaning = ", ".join(MEANING[n] for n in range(1, reached + 1)) or MEANING[0]
    out.print(f"Level reached: {reached} of 5 ({meaning})")
    if why := why_not_higher(checks):
        out.print(f"Not higher: {escape(why)}")


def _told() -> Progress:
    """Each step's name on standard error, once."""
    seen: set[str] = set()

    def tell(step: Step) -> None:
        if step.what not in seen:
            seen.add(step.what)
            err.print(f"{escape(step.what)} …")

    return tell
