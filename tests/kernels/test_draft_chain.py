"""All steps of a draft in one call, against the operations one by one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensor, FakeTensorMode

from pearl_kernels import (
    DraftChain,
    Purpose,
    RowStats,
    SampleOutput,
    SamplingTensors,
    backends,
    draft_chain,
    induce_,
    sample,
    window_decoder,
)
from tests.kernels.levels import LEVELS, run_at
from tests.kernels.test_window_decoder import OUTPUTS, WindowCase, case_of, decoder_of, three_layers
from tests.kernels.test_window_layer import CAPACITY, weights_of
from tests.kernels.test_window_layer import case_of as layer_case_of

LENGTHS, WIDTH, STEPS = [3, 0, 31], 2, 4
IF_INTERPRETED = pytest.mark.skipif(
    torch.cuda.is_available() or not backends()["triton"].available, reason="Triton is not interpreted here"
)


@dataclass
class Case(WindowCase):
    params: SamplingTensors = field(kw_only=True)
    steps: int = STEPS
    options: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        given = dict(vars(self))
        return given | given.pop("options")

    def run(self, backend: str | None = None) -> Any:
        return draft_chain(**self.arguments(), backend=backend)

    def cloned(self) -> Case:
        options = {key: value.clone() if key == "text" else value for key, value in self.options.items()}
        return replace(super().cloned(), options=options)


def chain_of(lengths: list[int] = LENGTHS, width: int = WIDTH, **options: Any) -> Case:
    window = case_of(lengths, width, decoder_of(*three_layers(), dtype=torch.bfloat16))
    given = vars(window)
    del given["keep"]
    params = SamplingTensors.make(
        len(lengths), temperature=[0.0, 0.8, 1.3][: len(lengths)], top_k=[0, 5, 0][: len(lengths)], seed=7
    )  # fmt: skip
    return Case(**given, params=params, options=options)


def induction_of(case: Case) -> dict[str, Tensor]:
    """With texts that repeat themselves, so that it changes what is drawn."""
    period = torch.arange(CAPACITY) % 3 + 1
    text = torch.stack([period] * len(case.tokens))
    for row, length in enumerate(case.seq_lens.tolist()):
        case.tokens[row] = period[length : length + case.tokens.shape[1]]
    return {"text": text, "strengths": torch.tensor([4.0, 9.0, 30.0])}


def one_by_one(case: Case, backend: str) -> tuple[list[Any], list[Tensor]]:
    """Its draws and logits, step by step; the caches and the text are written to."""
    options, tokens, lengths = case.options, case.tokens, case.seq_lens
    vocab, d2t, text = (options.get(name) for name in ("vocab", "d2t", "text"))
    drawn, rows = [], []
    for _ in range(case.steps):
        [logits] = window_decoder(
            tokens, case.weights, case.cos, case.sin, case.k_caches, case.v_caches, lengths, scale=case.scale, keep=1,
            backend=backend,
        ).unbind(1)  # fmt: skip
        if text is not None:
            text.scatter_(1, lengths[:, None] + torch.arange(tokens.shape[1]), tokens)
        lengths = lengths + tokens.shape[1]
        if text is not None:
            induce_(logits[:, :vocab], text, lengths, options["strengths"], d2t=d2t, backend=backend)
        noise = {"purpose": options.get("purpose", Purpose.DRAFT), "epochs": options.get("epochs")}
        out = sample(logits[:, :vocab], case.params, lengths, **noise, backend=backend)
        ids = out.tokens if d2t is None else d2t[out.tokens]
        drawn.append((ids, *out.stats, out.status))
        rows.append(logits)
        tokens = ids[:, None]
    return drawn, rows


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(3)


@pytest.fixture(params=["cpu", "reference"])
def backend(request) -> str:
    return request.param


@pytest.mark.parametrize("backend", ["cpu", "reference", pytest.param("triton", marks=IF_INTERPRETED)])
def test_a_batch_may_be_empty(backend):
    weights = [weights_of(), weights_of()]
    case, layer = replace(chain_of(), weights=decoder_of(*weights)), layer_case_of([3], 2, weights[0])
    given = (case.tokens, case.k_caches.transpose(0, 1), case.v_caches.transpose(0, 1), case.seq_lens)
    tokens, k_caches, v_caches, seq_lens = (each[:0] for each in given)
    arguments = (tokens, case.weights, case.cos, case.sin, k_caches.transpose(0, 1)[:2], v_caches.transpose(0, 1)[:2])
    logits = window_decoder(*arguments, seq_lens, scale=1.0, keep=1, backend=backend)
    assert logits.shape == (0, 1, OUTPUTS)
    drawn, _ = draft_chain(*arguments, seq_lens, SamplingTensors.make(0), scale=1.0, steps=3, backend=backend)
    assert drawn.tokens.shape == (0, 3)
    names = ("x", "cos", "sin", "k_cache", "v_cache", "seq_lens")
    empty = replace(layer, **{name: getattr(layer, name)[:0] for name in names})
    assert empty.run(backend).shape == (0, *layer.x.shape[1:])


D2T = torch.arange(OUTPUTS) + torch.arange(OUTPUTS) // 2  # past the embedding's ids too
STRIDED_D2T = torch.stack([D2T, torch.zeros_like(D2T)], dim=1)[:, 0]


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("induces", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"vocab": 23},
        {"d2t": D2T},
        {"d2t": STRIDED_D2T},
        {"purpose": Purpose.SAMPLE},
        {"epochs": torch.tensor([5, 1 << 40, 2])},
    ],
    ids=["plain", "fewer ids", "d2t", "strided d2t", "coupled", "epochs"],
)
def test_one_call_has_the_bits_of_the_operations_one_by_one(backend, width, induces, options):
    case = chain_of(width=width, **options)
    if induces:
        case.options |= induction_of(case)
    apart = case.cloned()
    drawn, rows = one_by_one(apart, backend)
    found, logits = case.run(backend)
    assert torch.equal(logits, torch.stack(rows, dim=1))
    got = (found.tokens, *found.stats, found.status)
    for column, mine in zip(zip(*drawn, strict=True), got, strict=True):
        wanted = torch.stack(column, dim=1)
        assert mine.dtype is wanted.dtype
        assert torch.equal(mine, wanted)
    assert torch.equal(case.k_caches, apart.k_caches)
    assert torch.equal(case.v_caches, apart.v_caches)
    if induces:
        assert torch.equal(case.options["text"], apart.options["text"])
        assert (found.tokens[:, 0] == case.tokens[:, -1] % 3 + 1).any() or "d2t" in options


def new_chain(steps: int = STEPS, *, logits: bool = True) -> DraftChain:
    """What a chain may be written to."""
    threshold, lse = (torch.empty(steps, 3).mT for _ in range(2))
    drawn = SampleOutput(
        torch.empty(steps, 3, dtype=torch.int64).mT, RowStats(threshold, lse),
        torch.empty(steps, 3, dtype=torch.int32).mT,
    )  # fmt: skip
    return DraftChain(drawn, torch.empty(steps, 3, OUTPUTS).transpose(0, 1) if logits else None)


@pytest.mark.parametrize("keeps", [False, True])
def test_is_written_where_the_caller_wants_it(backend, keeps):
    case, out = chain_of(d2t=D2T), new_chain(logits=keeps)
    wanted = case.cloned().run(backend)
    case.options["out"] = out
    assert case.run(backend) is out
    assert torch.equal(out.drawn.tokens, wanted.drawn.tokens)
    assert torch.equal(out.drawn.status, wanted.drawn.status)
    for mine, theirs in zip(out.drawn.stats, wanted.drawn.stats, strict=True):
        assert torch.equal(mine, theirs)
    if keeps:
        assert torch.equal(out.logits, wanted.logits)


def test_the_device_that_torch_makes_tensors_on_does_not_matter():
    case, out = chain_of(), new_chain(logits=False)
    wanted = case.cloned().run("cpu")
    case.options["out"] = out
    with torch.device("meta"):
        case.run("cpu")
    assert torch.equal(out.drawn.tokens, wanted.drawn.tokens)


def rows_of(case: Case, row: int, length: int) -> Case:
    """One row of a case, with so many of its window's tokens."""
    b = slice(row, row + 1)
    columns = {name: getattr(case.params, name)[b] for name in ("temperature", "top_k", "top_p", "min_p", "seed")}
    options = {name: value[b].clone() if name == "text" else value for name, value in case.options.items()}
    return replace(
        case, tokens=case.tokens[b, :length], k_caches=case.k_caches[:, b].clone(), options=options,
        v_caches=case.v_caches[:, b].clone(), seq_lens=case.seq_lens[b], params=SamplingTensors(**columns),
    )  # fmt: skip


def assert_rows_may_have_fewer_tokens(case: Case, backend: str) -> None:
    """Each draws what it would without the others, whatever they are."""
    lengths, within = torch.tensor([2, 1, 3]), 0.0 if backend == "cpu" else 1e-4  # torch's products differ by rounding
    alone = [rows_of(case, row, length) for row, length in enumerate(lengths.tolist())]
    case.options["lengths"] = lengths
    found, logits = case.run(backend)
    for row, each in enumerate(alone):
        wanted = each.run(backend)
        assert torch.equal(found.tokens[row], wanted.drawn.tokens[0])
        torch.testing.assert_close(logits[row], wanted.logits[0], rtol=within, atol=within)
        end = int(case.seq_lens[row] + lengths[row]) + case.steps - 1
        ours, theirs = case.k_caches[:, row, :, :end], each.k_caches[:, 0, :, :end]
        torch.testing.assert_close(ours, theirs, rtol=within, atol=within)
        if "text" in case.options:
            assert torch.equal(case.options["text"][row, :end], each.options["text"][0, :end])


@pytest.mark.parametrize("induces", [False, True])
def test_rows_may_have_fewer_tokens(backend, induces):
    case = chain_of(width=3, d2t=D2T)
    if induces:
        case.options |= induction_of(case)
    assert_rows_may_have_fewer_tokens(case, backend)


def test_what_a_row_does_not_have_may_lie_past_the_end_of_the_text(backend):
    case = chain_of([3, 0, 20], 4)
    case.options |= {**induction_of(case), "lengths": torch.tensor([4, 2, 1])}
    case.steps = 2
    short = case.cloned()
    short.options["text"] = short.options["text"][:, :22]
    wanted, found = case.run(backend), short.run(backend)
    assert torch.equal(found.drawn.tokens, wanted.drawn.tokens)
    assert torch.equal(short.options["text"], case.options["text"][:, :22])


def test_what_was_drawn_is_what_the_next_step_reads(backend):
    """A chain of one step after a chain of three is the fourth step."""
    case = chain_of([3, 0, 31], 2, d2t=D2T)
    whole, parts = case.cloned().run(backend), case.cloned()
    parts.steps = 3
    first = parts.run(backend).drawn.tokens
    then = replace(parts, tokens=first[:, -1:], seq_lens=case.seq_lens + 2 + 2, steps=1).run(backend)
    assert torch.equal(whole.drawn.tokens[:, :3], first)
    assert torch.equal(whole.drawn.tokens[:, 3:], then.drawn.tokens)
    assert len(set(whole.drawn.tokens.flatten().tolist())) > 3


def test_a_row_that_cannot_be_drawn_from_says_so_and_the_others_go_on(backend):
    case = chain_of(d2t=D2T)
    whole = case.cloned().run(backend).drawn
    case.v_caches[:, 1, :, 0] = torch.nan
    case.seq_lens[1] = 5
    found = case.run(backend).drawn
    assert (found.status[1] != 0).all()
    assert (found.tokens[1] == D2T[0]).all()
    assert not found.status[[0, 2]].any()
    assert torch.equal(found.tokens[[0, 2]], whole.tokens[[0, 2]])


def test_a_row_draws_what_it_would_alone(backend):
    case = chain_of()
    together = case.cloned().run(backend).drawn
    for row in range(3):
        alone = rows_of(case, row, WIDTH).run(backend)
        assert torch.equal(alone.drawn.tokens[0], together.tokens[row])


def test_can_be_compiled(backend):
    case = chain_of(d2t=D2T)
    wanted = case.cloned().run(backend)

    def chain(tokens: Tensor) -> tuple[Tensor, Tensor]:
        drawn, logits = replace(case, tokens=tokens).run(backend)
        return drawn.tokens, logits

    tokens, logits = torch.compile(chain, fullgraph=True, backend="aot_eager")(case.tokens)
    assert torch.equal(tokens, wanted.drawn.tokens)
    assert torch.equal(logits, wanted.logits)


def test_of_a_tensor_without_memory_only_shapes_are_told():
    """As torch asks for them where it estimates what a model would need."""
    case = chain_of(d2t=D2T)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        case.tokens = mode.from_tensor(case.tokens)
        (tokens, stats, status), logits = case.run()
    assert isinstance(logits, FakeTensor)
    assert logits.shape == (3, STEPS, OUTPUTS)
    assert tokens.shape == stats.lse.shape == status.shape == (3, STEPS)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_this_processor_runs(level):
    program = """
import torch
from tests.kernels.test_draft_chain import chain_of, one_by_one
torch.manual_seed(0)
case = chain_of()
apart = case.cloned()
drawn, rows = one_by_one(apart, "cpu")
found = case.run("cpu")
assert torch.equal(found.logits, torch.stack(rows, dim=1))
assert torch.equal(found.drawn.tokens, torch.stack([each[0] for each in drawn], dim=1))
"""
    run_at(level, program)


TEXT, STRENGTHS = torch.zeros(3, CAPACITY, dtype=torch.int64), torch.ones(4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.zeros(3, 2)}, r"tokens must be \(batch, width\) int64"),
        ({"tokens": torch.zeros(3, 0).long()}, r"tokens must be .* a width of at least 1, got \(3, 0\)"),
        ({"cos": torch.zeros(8, 8)}, r"cos must be \(positions=8, head_dim=10\) float32"),
        ({"params": SamplingTensors.make(2)}, r"params.temperature must be \(batch=3,\) float32"),
        ({"params": SamplingTensors.make(3, top_p=0.0)}, r"params.top_p must be in \(0, 1\]"),
        ({"steps": 0}, r"steps must be at least 1, got 0"),
        ({"steps": 60}, r"seq_lens must be in \[0, -11\]"),
        ({"seq_lens": torch.tensor([0, 1, CAPACITY - 4])}, r"seq_lens must be in \[0, 45\]"),
        ({"seq_lens": torch.tensor([0, -1, 4])}, r"seq_lens must be in \[0, 45\]"),
        ({"options": {"vocab": OUTPUTS + 1}}, r"vocab must be from 1 to the head's 41 outputs, got 42"),
        ({"options": {"vocab": 0}}, r"vocab must be from 1"),
        ({"options": {"lengths": torch.ones(2).long()}}, r"lengths must be \(batch=3,\) int64"),
        ({"options": {"lengths": torch.tensor([1, 0, 1])}}, r"lengths must be in \[1, 2\], got values from 0 to 1"),
        ({"options": {"lengths": torch.tensor([1, 2, 3])}}, r"lengths must be in \[1, 2\], got values from 1 to 3"),
        ({"options": {"purpose": 3}}, r"purpose must be a Purpose, got 3"),
        ({"options": {"epochs": torch.zeros(3)}}, r"epochs must be \(batch=3,\) int64"),
        ({"options": {"d2t": torch.arange(7)}}, r"d2t must be \(vocab=41,\) int64"),
        ({"options": {"text": TEXT}}, r"text and strengths must be given together"),
        ({"options": {"strengths": STRENGTHS}}, r"text and strengths must be given together"),
        ({"options": {"text": TEXT[:2], "strengths": STRENGTHS}}, r"text must be \(batch=3, capacity=50\) int64"),
        (
            {"options": {"text": TEXT[:, :35], "strengths": STRENGTHS}},
            r"text must have a length of at least 36 .*, got 35",
        ),
        ({"options": {"text": TEXT, "strengths": torch.ones(0)}}, r"strengths must be 1 to 32 numbers, got 0"),
        ({"options": {"text": TEXT, "strengths": STRENGTHS, "d2t": torch.arange(7)}}, r"d2t must be \(vocab=41,\)"),
        ({"options": {"out": new_chain(3)}}, r"out.drawn.tokens, transposed, must be \(steps=4, batch=3\) int64"),
        (
            {"options": {"out": new_chain()._replace(logits=torch.empty(3, STEPS, OUTPUTS))}},
            r"out.logits, transposed, must be contiguous",
        ),
        ({"options": {"out": torch.empty(3, STEPS)}}, r"out must be DraftChain of a SampleOutput, got Tensor"),
        ({"options": {"out": DraftChain(None, None)}}, r"out must be DraftChain of a SampleOutput, got DraftChain"),
        (
            {"options": {"out": new_chain()._replace(drawn=new_chain().drawn._replace(tokens=torch.zeros(3)))}},
            r"out.drawn.tokens, transposed, must be \(steps=4, batch=3\) int64",
        ),
    ],
)
def test_a_mistake_is_named(changes, message):
    with pytest.raises(ValueError, match="draft_chain: .*" + message):
        replace(chain_of(), **changes).run()
