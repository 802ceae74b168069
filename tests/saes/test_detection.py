import pytest
import torch

from evalkit.saes.coder import Sae
from evalkit.saes.corpus import Chunk
from evalkit.saes.detection import LEAST, Examples, detection_score, examples, stated_words, token_overlap
from evalkit.saes.harvest import ChunkStreams
from evalkit.saes.judging import Limits

CITY, WORD = 1, 2
HOOK = "layers.0"


def coder() -> Sae:
    """Feature i is coordinate i of the stream."""
    eye, zeros = torch.eye(3), torch.zeros(3)
    return Sae(architecture="standard", hook=HOOK, W_enc=eye, b_enc=zeros, W_dec=eye, b_dec=zeros)


def chunk(n: int, city: bool) -> ChunkStreams:
    """32 tokens; with `city`, one token in the second window is a city and its feature fires there."""
    tokens = [WORD] * 32
    stream = torch.zeros(32, 3)
    if city:
        tokens[20] = CITY
        stream[20, 1] = 5.0
    return ChunkStreams(Chunk(f"s{n}", tuple(tokens), 0), {HOOK: stream})


def text_of(token: int) -> str:
    return {CITY: " Turin", WORD: " it"}[token]


def drawn(n: int = 20, seed: int = 0, n_chunks: int = 40) -> Examples:
    streams = [chunk(i, i % 4 < 2) for i in range(n_chunks)]
    return examples(streams, coder(), Limits(1e9), [1], text_of, n=n, seed=seed)[0]


def test_contexts_that_fire_hold_what_the_feature_reads_and_the_others_do_not() -> None:
    found = drawn()
    assert len(found.firing) == len(found.other) == 10
    assert all("Turin" in words for words in (*found.firing, *found.shown))
    assert not any("Turin" in words for words in found.other)


def test_the_drawing_follows_the_seed_and_is_bounded() -> None:
    assert drawn(n=6) == drawn(n=6)
    assert len(drawn(n=6).firing) == 6


def test_what_a_label_is_made_from_is_no_test_of_it() -> None:
    """Only even chunks fire: there is something to show and nothing to test on."""
    streams = [chunk(i, i % 2 == 0) for i in range(20)]
    found = examples(streams, coder(), Limits(1e9), [1], text_of, n=20, seed=0)[0]
    assert found.shown
    assert found.firing == ()


def test_a_fitting_label_scores_one_and_a_wrong_one_what_guessing_scores() -> None:
    fits = detection_score("mentions of Turin", drawn(), token_overlap, "token_overlap")
    assert (fits.balanced_accuracy, fits.n_firing, fits.n_other) == (1.0, 10, 10)
    wrong = detection_score("chemistry", drawn(), token_overlap, "token_overlap")
    assert wrong.balanced_accuracy == 0.5
    reverse = detection_score("it", drawn(), lambda _, texts: ["Turin" not in t for t in texts], "x")
    assert reverse.balanced_accuracy == 0.0


def test_too_few_contexts_are_not_measured_and_the_reason_is_said() -> None:
    score = detection_score("Turin", drawn(n=LEAST - 1), token_overlap, "token_overlap")
    assert score.balanced_accuracy is None
    assert "fewer than 4 held-out contexts" in (score.not_measured or "")


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("References to European capitals", {"european", "capitals"}),
        ("the word “certain”", {"certain"}),
        ("to be", set()),
    ],
)
def test_a_label_is_recognised_by_its_own_words(label: str, words: set[str]) -> None:
    assert stated_words(label) == words


def test_a_position_outside_the_saes_range_does_not_fire() -> None:
    streams = [ChunkStreams(c, {HOOK: s[HOOK] * 1000}) for c, s in (chunk(i, True) for i in range(20))]
    found = examples(streams, coder(), Limits(100.0), [1], text_of, n=20, seed=0)[0]
    assert found.firing == found.shown == ()
