"""What causes the failure in each calibration model, as data.

Every model has the same plan. Words write their own direction into the stream (hook `layers.0`); one
attention head carries them to every later position, so also to the final one (`layers.1`, *moved*
features); a few ReLU units there compute the failure's strength (`layers.2`, the *hidden* feature); the
head answers with the failing word if that strength exceeds a threshold:

    moved(word)  = reach / number of tokens · strength(word)
    hidden       = Σ_units writes · ReLU(Σ_words reads · moved(word) + bias)     (a *second* one likewise)
    crowd        = reach / number of tokens · Σ_fillers crowd of the filler       (mostly zero)
    margin, nats = GAIN · (hidden + second + crowd − threshold)

So the truth is known by construction, and `truth` measures it once more by brute force.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from evalkit.records import Baseline

GAIN = 6.0  # chosen: margins of 1 to 5 nats, as real failures have

Place = Literal["word", "moved", "hidden", "second", "crowd", "crowd_kept"]
Target = Literal["hidden", "second"]
PLACES: dict[Place, tuple[str, str]] = {
    "word": ("layers.0", "{}"),
    "moved": ("layers.1", "moved:{}"),
    "hidden": ("layers.2", "hidden"),
    "second": ("layers.2", "second"),
    "crowd": ("layers.1", "crowd"),
    "crowd_kept": ("layers.2", "crowd"),
}
"""Place of a cause → its hook and the name of its direction, with the word filled in."""


class Unit(NamedTuple):
    """One ReLU unit at the final position."""

    reads: Mapping[str, float]
    """Word → weight on its moved feature."""
    bias: float
    writes: float
    """Weight on the hidden feature."""
    to: Target = "hidden"
    """Which hidden feature it writes."""


class Cause(NamedTuple):
    """A feature that causes the failure, at one place of the circuit."""

    place: Place
    word: str
    """Empty for the hidden feature."""
    baseline: Baseline = "ablation"
    """The intervention that shows it."""
    alone: bool = True
    """False: it has no effect while its stand-in is there; only a joint ablation shows it."""
    by_gradient: bool = True
    """False: the gradient is zero or has the wrong sign there."""
    listed: bool = True
    """False: a known blind spot, the default shortlist does not reach it."""


class Wiring(NamedTuple):
    """One variant: which words fail, how, and what must be found."""

    name: str
    title: str
    failing: tuple[str, ...]
    """Planted words of a failing sample."""
    twin: tuple[str, ...]
    """Planted words of its passing twin."""
    bystanders: tuple[tuple[str, ...], ...]
    """Planted words of samples that pass without a twin, taken in turn."""
    units: tuple[Unit, ...]
    threshold: float
    causes: tuple[Cause, ...]
    strength: Mapping[str, float] = {}
    """Word → length of the direction it writes; default 1."""
    correlates: tuple[str, ...] = ()
    """Words that come with failures and cause nothing."""
    undecoded: tuple[str, ...] = ()
    """Words whose directions no SAE has a row for; the hidden feature then has none either."""
    lengths: tuple[int, ...] = (9, 10, 11)
    """Tokens of a prompt, beginning and final word included."""
    crowd: float = 0.0
    """What one filler word adds to the failure on average; each a little more or less."""
    paired: bool = True
    """False: failures have no twin, so that the contrast is taken from other passing samples."""
    failing_too: tuple[tuple[str, ...], ...] = ()
    """Planted words of further failing samples, taken in turn with `failing`."""

    @property
    def reach(self) -> int:
        """Number of tokens at which a moved feature equals its word's strength."""
        return self.lengths[len(self.lengths) // 2]

    @property
    def words(self) -> tuple[str, ...]:
        """Every planted word, in order of first mention."""
        every = (self.failing, self.twin, *self.bystanders, *self.failing_too)
        mentioned = (word for words in every for word in words)
        return tuple(dict.fromkeys(mentioned))

    @property
    def edges(self) -> tuple[tuple[tuple[Place, str], tuple[Place, str]], ...]:
        """Which cause drives which at the next hook, as (place, word), where ablating one shows it."""
        shown = {(c.place, c.word) for c in self.causes if c.alone and c.listed}
        wired: list[tuple[tuple[Place, str], tuple[Place, str]]] = [
            (("word", w), ("moved", w)) for w in self.words
        ]
        wired += [(("moved", w), (unit.to, "")) for unit in self.units for w in unit.reads]
        wired.append((("crowd", ""), ("crowd_kept", "")))
        return tuple(dict.fromkeys(e for e in wired if set(e) <= shown))

    @property
    def null(self) -> bool:
        """True: no feature of the SAEs causes the failure."""
        return not self.causes


def _path(word: str, baseline: Baseline = "ablation", **more: bool) -> tuple[Cause, ...]:
    return (Cause("word", word, baseline, **more), Cause("moved", word, baseline, **more))


HIDDEN = (Cause("hidden", ""),)

MOVED = Wiring(
    "moved", "A cause at an earlier word, moved by attention to the final position",
    failing=("alpha",), twin=(), bystanders=((),),
    units=(Unit({"alpha": 1.0}, 0.0, 1.0),), threshold=0.4, causes=_path("alpha") + HIDDEN,
)  # fmt: skip

CONJUNCTION = Wiring(
    "conjunction", "Two features that cause the failure only together",
    failing=("alpha", "beta"), twin=("alpha",), bystanders=(("alpha",), ("beta",), ()),
    units=(Unit({"alpha": 1.0, "beta": 1.0}, -1.3, 2.0),), threshold=0.4,
    causes=_path("alpha") + _path("beta") + HIDDEN,
)  # fmt: skip

SATURATED = Wiring(
    "saturated", "A cause far above its ceiling: the gradient is zero, the effect is whole",
    failing=("alpha",), twin=(), bystanders=((),), strength={"alpha": 3.0},
    units=(Unit({"alpha": 1.0}, 0.0, 1.0), Unit({"alpha": 1.0}, -1.0, -1.0)), threshold=0.4,
    causes=_path("alpha", by_gradient=False) + HIDDEN,
)  # fmt: skip

OVERSHOT = Wiring(
    "overshot", "A cause past its peak: the gradient has the wrong sign",
    failing=("alpha",), twin=(), bystanders=((),), strength={"alpha": 3.0},
    units=(Unit({"alpha": 1.0}, 0.0, 1.0), Unit({"alpha": 1.0}, -1.0, -1.1)), threshold=0.4,
    causes=_path("alpha", by_gradient=False) + HIDDEN,
)  # fmt: skip

REDUNDANT = Wiring(
    "redundant", "Two causes, each enough alone: ablating one changes nothing",
    failing=("alpha", "beta"), twin=(), bystanders=((),),
    units=(
        Unit({"alpha": 1.0, "beta": 1.0}, 0.0, 1.0), Unit({"alpha": 1.0, "beta": 1.0}, -0.8, -1.0),
    ),
    threshold=0.4,
    causes=_path("alpha", alone=False, by_gradient=False) + _path("beta", alone=False, by_gradient=False)
    + HIDDEN,
)  # fmt: skip

INHIBITOR = Wiring(
    "inhibitor", "A refusal feature that did not fire; only the contrast with the twin shows it",
    failing=("alpha",), twin=("alpha", "refuse"), bystanders=(("alpha", "refuse"), ("refuse",), ()),
    units=(Unit({"alpha": 1.0, "refuse": -2.0}, 0.0, 1.0),), threshold=0.4,
    causes=_path("alpha") + _path("refuse", "contrast") + HIDDEN,
)  # fmt: skip

CORRELATE = Wiring(
    "correlate", "A feature that fires on every failure and causes none",
    failing=("alpha", "gamma"), twin=(), bystanders=((), (), (), ("gamma",)), strength={"gamma": 3.0},
    units=(Unit({"alpha": 1.0}, 0.0, 1.0),), threshold=0.4, causes=_path("alpha") + HIDDEN,
    correlates=("gamma",),
)  # fmt: skip

DECOY = Wiring(
    "decoy", "A correlate with a steep gradient and no effect",
    failing=("alpha", "gamma"), twin=(), bystanders=((), ("gamma",)),
    # the bump of gamma is zero at 0 and at 1, where its slope is −1
    units=(
        Unit({"alpha": 1.0}, 0.0, 1.0), Unit({"gamma": 1.0}, 0.0, 1.0), Unit({"gamma": 1.0}, -0.5, -2.0),
    ),
    threshold=0.4, causes=_path("alpha") + HIDDEN, correlates=("gamma",), lengths=(10,),
)  # fmt: skip

CROWD = Wiring(
    "crowd", "A saturated cause behind more weak causes than the shortlist has room for",
    failing=("alpha",), twin=(), bystanders=((),), lengths=(29, 30, 31), crowd=0.03,
    units=(Unit({"alpha": 1.0}, 0.0, 3.0), Unit({"alpha": 1.0}, -0.3, -3.0)), threshold=0.4 + 27 * 0.03,
    causes=_path("alpha", by_gradient=False) + HIDDEN + (Cause("crowd", ""), Cause("crowd_kept", "")),
)  # fmt: skip

CROWD_UNPAIRED = CROWD._replace(
    name="crowd-unpaired",
    title="The same without passing twins: the saturated cause is out of the shortlist's reach",
    paired=False,
    causes=_path("alpha", by_gradient=False, listed=False) + CROWD.causes[2:],
)

DAMPED = Wiring(
    "damped", "A cause held down by an inhibitor that fires, too weakly to stop it",
    failing=("alpha", "refuse"), twin=("refuse",), bystanders=(("refuse",), ()),
    units=(Unit({"alpha": 1.0, "refuse": -0.3}, 0.0, 1.0),), threshold=0.4,
    causes=_path("alpha") + _path("refuse") + HIDDEN,
)  # fmt: skip

PARALLEL = Wiring(
    "parallel", "Two chains side by side: their features fire together, and neither drives the other's",
    failing=("alpha", "beta"), twin=("alpha",), bystanders=(("alpha",), ("beta",), ()),
    units=(Unit({"alpha": 1.0}, 0.0, 1.0), Unit({"beta": 1.0}, 0.0, 1.0, "second")), threshold=1.4,
    causes=_path("alpha") + _path("beta") + HIDDEN + (Cause("second", ""),),
)  # fmt: skip

NULL = Wiring(
    "null", "A cause in directions that no SAE has a row for, with correlates firing",
    failing=("nu", "gamma", "delta"), twin=(), bystanders=((), ("gamma",), ("delta",)),
    units=(Unit({"nu": 1.0}, 0.0, 1.0),), threshold=0.4, causes=(),
    correlates=("gamma", "delta"), undecoded=("nu",),
)  # fmt: skip

NULL_LOUD = NULL._replace(
    name="null-loud", title="The same with correlates twice as strong",
    strength={"gamma": 2.0, "delta": 2.0},
)  # fmt: skip

NULL_SATURATED = NULL._replace(
    name="null-saturated", title="The same with the cause far above its ceiling", strength={"nu": 3.0},
    units=(Unit({"nu": 1.0}, 0.0, 1.0), Unit({"nu": 1.0}, -1.0, -1.0)),
)  # fmt: skip

NULL_DECOY = NULL._replace(
    name="null-decoy", title="The same with a correlate that has a steep gradient and no effect",
    units=(*NULL.units, *DECOY.units[1:]), lengths=DECOY.lengths,
)  # fmt: skip

NULLS = (NULL, NULL_LOUD, NULL_SATURATED, NULL_DECOY)

MIXED = Wiring(
    "mixed", "Two failures of three come through a feature, the third through no feature of the SAEs",
    failing=("alpha",), failing_too=(("nu",), ("alpha",)), twin=(), bystanders=((),),
    units=(Unit({"alpha": 1.0}, 0.0, 1.0), Unit({"nu": 1.0}, 0.0, 1.0)), threshold=0.4,
    causes=_path("alpha"), undecoded=("nu",),
)  # fmt: skip

GATE_WORDINGS = ((("frame", "exam"), ("frame", "plain")), (("frame", "quiz"), ("frame", "pebble")))
"""Per wording: the words of the cue that means a test, and of the control that has its form alone."""
_GATE_WORDS = ("alpha", "frame", "exam", "quiz", "plain", "pebble")

GATE = Wiring(
    "test-gate", "A gate that opens where the prompt says that it is a test, in either wording",
    failing=_GATE_WORDS, twin=(), bystanders=((),), strength={"frame": 3.0},
    units=(Unit({"alpha": 1.0}, 0.0, 1.0), Unit({"exam": 1.0, "quiz": 1.0}, 0.0, 1.0, "second")),
    threshold=1.4, causes=(Cause("second", ""),), correlates=("frame",),
)  # fmt: skip

FORM_GATE = GATE._replace(
    name="form-gate", title="A gate that opens on the form of a cue, whatever the cue says",
    units=(GATE.units[0], Unit({"frame": 0.4}, 0.0, 1.0, "second")), correlates=(),
)  # fmt: skip

GATES = (GATE, FORM_GATE)

PLANTED = (
    MOVED,
    CONJUNCTION,
    SATURATED,
    OVERSHOT,
    REDUNDANT,
    INHIBITOR,
    CORRELATE,
    DECOY,
    CROWD,
    CROWD_UNPAIRED,
    DAMPED,
    PARALLEL,
)
