"""`induce_` on every backend, against a few lines of Python."""

import pytest
import torch

import pearl_kernels
from pearl_kernels import induce_

VOCAB, CAPACITY, MOST = 6, 24, 3
STRENGTHS = torch.tensor([1.0, 2.5, 4.0])


def expected_gain(text: list[int], most: int) -> tuple[int, int] | None:
    """How many tokens match at the best place, and the token after it."""
    best = None
    for place in range(len(text) - 1):
        ends = [n for n in range(1, most + 1) if n <= place + 1 and text[place - n + 1 : place + 1] == text[-n:]]
        if ends and (best is None or max(ends) >= best[0]):
            best = max(ends), text[place + 1]
    return best


def expected(logits: torch.Tensor, texts: list[list[int]], d2t: torch.Tensor | None) -> torch.Tensor:
    out = logits.clone()
    columns = list(range(logits.shape[1])) if d2t is None else d2t.tolist()
    for row, text in enumerate(texts):
        gain = expected_gain(text, MOST)
        if gain is not None and gain[1] in columns:
            out[row, columns.index(gain[1])] += STRENGTHS[gain[0] - 1]
    return out


def random_texts(batch: int) -> tuple[torch.Tensor, torch.Tensor, list[list[int]]]:
    """Tokens whose rest repeats the text, so that a place past the end would match."""
    generator = torch.Generator().manual_seed(batch)
    tokens = torch.randint(0, VOCAB, (batch, CAPACITY), generator=generator)
    tokens[::3] %= 2  # that repeats itself all the time
    lengths = torch.arange(batch) % (CAPACITY + 1)
    return tokens, lengths, [row[:length] for row, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]


@pytest.fixture(params=["reference", "cpu", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    state = pearl_kernels.backends()[request.param]
    if not state.available:
        pytest.skip(state.reason)
    return str(request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("known", [None, (0, 2, 3, 5)])
def test_the_token_that_followed_the_longest_and_latest_match_gains(
    backend: str, dtype: torch.dtype, known: tuple[int, ...] | None
) -> None:
    d2t = None if known is None else torch.tensor(known)
    tokens, lengths, texts = random_texts(100)
    logits = torch.randn(100, len(known or range(VOCAB)), generator=torch.Generator().manual_seed(1)).to(dtype)
    wanted = expected(logits, texts, d2t)
    got = induce_(logits, tokens, lengths, STRENGTHS, d2t=d2t, backend=backend)
    assert got is logits
    assert torch.equal(got, wanted)
    assert len({gain[0] for text in texts if (gain := expected_gain(text, MOST))}) == MOST


def test_strided_rows_of_logits_and_of_tokens(backend: str) -> None:
    tokens, lengths, texts = random_texts(100)
    logits = torch.zeros(100, 2, VOCAB)
    room = torch.zeros(100, CAPACITY + 5, dtype=torch.int64)
    room[:, :CAPACITY] = tokens
    induce_(logits[:, 1], room[:, :CAPACITY], lengths, STRENGTHS, backend=backend)
    assert torch.equal(logits[:, 1], expected(torch.zeros(100, VOCAB), texts, None))
    assert not logits[:, 0].any()


def test_a_text_longer_than_a_block_is_looked_through_to_its_beginning(backend: str) -> None:
    length = 20_000
    text = torch.arange(length)
    text[:3] = text[-3:]  # the end came once before, at the very beginning
    logits = torch.zeros(1, length + 1)
    induce_(logits, text[None], torch.tensor([length]), STRENGTHS, backend=backend)
    assert logits.nonzero().tolist() == [[0, 3]]
    assert logits[0, 3] == STRENGTHS[2]


def test_no_rows_and_no_places(backend: str) -> None:
    none = torch.zeros(0, dtype=torch.int64)
    induce_(torch.zeros(0, VOCAB), torch.zeros(0, 4, dtype=torch.int64), none, STRENGTHS, backend=backend)
    logits = torch.zeros(1, VOCAB)
    induce_(logits, none[None], torch.zeros(1, dtype=torch.int64), STRENGTHS, backend=backend)
    assert not logits.any()


def test_compiles_into_one_graph_and_passes_opcheck() -> None:
    tokens, lengths, texts = random_texts(30)

    def biased(logits: torch.Tensor) -> torch.Tensor:
        return induce_(logits.clone(), tokens, lengths, STRENGTHS) * 2

    compiled = torch.compile(biased, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(30, VOCAB)), 2 * expected(torch.zeros(30, VOCAB), texts, None))
    arguments = (torch.zeros(30, VOCAB), tokens, lengths, STRENGTHS, None, None)
    torch.library.opcheck(torch.ops.pearl.induce_.default, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(2, VOCAB, dtype=torch.int64)}, r"logits must be \(batch, vocab\) float32"),
        ({"tokens": torch.zeros(3, CAPACITY, dtype=torch.int64)}, r"tokens must be \(batch=2, capacity=24\) int64"),
        ({"tokens": torch.zeros(CAPACITY, 2, dtype=torch.int64).T}, "tokens must have a contiguous last dimension"),
        ({"lengths": torch.zeros(2, dtype=torch.int32)}, r"lengths must be \(batch=2,\) int64"),
        ({"lengths": torch.tensor([0, CAPACITY + 1])}, r"lengths must be in \[0, 24\], got values from 0 to 25"),
        ({"strengths": torch.zeros(0)}, "strengths must be 1 to 32 numbers, got 0"),
        ({"strengths": torch.zeros(33)}, "strengths must be 1 to 32 numbers, got 33"),
        ({"strengths": [1.0]}, r"strengths must be \(most=0,\) float32"),
        ({"d2t": torch.zeros(VOCAB - 1, dtype=torch.int64)}, r"d2t must be \(vocab=6,\) int64"),
    ],
)
def test_bad_arguments_are_named(change: dict[str, object], message: str) -> None:
    given = {
        "logits": torch.zeros(2, VOCAB),
        "tokens": torch.zeros(2, CAPACITY, dtype=torch.int64),
        "lengths": torch.tensor([3, 4]),
        "strengths": STRENGTHS,
    }
    with pytest.raises(ValueError, match=f"^induce_: {message}"):
        induce_(**{**given, **change})  # type: ignore[arg-type]
