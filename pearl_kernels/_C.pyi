from collections.abc import Sequence
from typing import Any, TypedDict

_Logits = tuple[int, int, int, int, int]
_Draft = tuple[_Logits, int, int, int]
_Params = tuple[int, int, int, int, int]
_Heads = tuple[int, int, int, int]
_Linear = tuple[int, int, int, int, bool, int, int, int]
_Weights = tuple[tuple[int, ...], float, tuple[_Linear, ...]]
_LayerSizes = tuple[int, int, int, int, int, int, int, int]
_Angles = tuple[int, int, int]
_Window = tuple[Any, ...]
_Queue = tuple[int, int, int, int]
_DraftRows = tuple[int, int, int]
_State = tuple[int, int, int, int, int, int, int, int, int]

class BuildInfo(TypedDict):
    version: str
    compiler: str
    simd_levels: tuple[str, ...]
    simd_level: str
    cuda: bool
    cuda_architectures: str

def build_info() -> BuildInfo: ...
def sample(
    batch: int,
    logits: _Logits,
    params: _Params,
    positions: int,
    epochs: int,
    purpose: int,
    tokens: int,
    threshold: int,
    lse: int,
    status: int,
    threads: int,
) -> None: ...
def verify(
    batch: int,
    width: int,
    target: _Logits,
    draft: _Draft,
    params: _Params,
    rule: int,
    draft_tokens: int,
    chain_len: int,
    positions: int,
    num_accepted: int,
    next_token: int,
    status: int,
    threads: int,
) -> None: ...
def advance(
    batch: int,
    width: int,
    state: _State,
    target: _Logits,
    draft: _Draft,
    params: _Params,
    rule: int,
    next_window: int,
    num_emitted: int,
    num_accepted: int,
    threads: int,
) -> None: ...
def induce(
    logits: _Logits,
    d2t: int,
    tokens: tuple[int, int, int, int],
    lengths: int,
    strengths: int,
    most: int,
) -> None: ...
def window_linear(
    x: int,
    rows: int,
    x_stride: int,
    inputs: int,
    layers: list[_Linear],
    threads: int,
) -> None: ...
def window_norm(x: int, rows: int, size: int, weight: int, offset: float, eps: float, out: int) -> None: ...
def window_attention(
    dtype: int,
    sizes: tuple[int, int, int, int, int, int],
    q: _Heads,
    k_cache: _Heads,
    v_cache: _Heads,
    k_new: _Heads,
    v_new: _Heads,
    seq_lens: int,
    scale: float,
    window: int,
    softcap: float,
    out: int,
    threads: int,
) -> None: ...
def window_layer(
    sizes: _LayerSizes,
    x: int,
    weights: _Weights,
    k_cache: _Heads,
    v_cache: _Heads,
    angles: _Angles,
    seq_lens: int,
    scale: float,
    out: int,
    threads: int,
) -> None: ...

class DecoderWeights:
    def __init__(
        self, embedding: tuple[int, int, int], layers: list[_Weights], norm: tuple[int, float], head: _Linear
    ) -> None: ...

def window_decoder(weights: DecoderWeights, window: _Window, keep: int, logits: int) -> None: ...
def draft_chain(
    weights: DecoderWeights,
    window: _Window,
    lengths: int,
    steps: int,
    vocab: int,
    params: _Params,
    epochs: int,
    purpose: int,
    d2t: int,
    text: tuple[int, int, int],
    strengths: tuple[int, int],
    out: tuple[int, int, int, int, int],
) -> None: ...

class Rounds:
    def __init__(
        self,
        batch: int,
        state: _State,
        params: _Params,
        rule: int,
        target: DecoderWeights,
        window: _Window,
        draft: tuple[Any, ...] | None,
    ) -> None: ...
    def run(
        self, gamma: int, missed: int, guesses: Sequence[Sequence[int]], threads: int
    ) -> tuple[str | None, tuple[float, float, float], list[list[int]], list[int]]: ...
    def draft(self, gamma: int, missed: int, rows: _DraftRows, threads: int) -> None: ...
    def read_windows(self, threads: int) -> None: ...
    def commit(
        self, gamma: int, drafted: _DraftRows, chain: _DraftRows, threads: int
    ) -> tuple[list[list[int]], list[int]]: ...

def release_threads() -> None: ...
def read_bytes(address: int, bytes: int) -> float: ...

# Only in binaries built with CUDA.
def cuda_problem(device: int) -> str | None: ...
def cuda_memory() -> list[tuple[int, int, int, int, int]]: ...
def sample_cuda(
    batch: int,
    logits: _Logits,
    params: _Params,
    positions: int,
    epochs: int,
    purpose: int,
    tokens: int,
    threshold: int,
    lse: int,
    status: int,
    queue: _Queue,
) -> None: ...
def verify_cuda(
    batch: int,
    width: int,
    target: _Logits,
    draft: _Draft,
    params: _Params,
    rule: int,
    draft_tokens: int,
    chain_len: int,
    positions: int,
    num_accepted: int,
    next_token: int,
    status: int,
    queue: _Queue,
) -> None: ...
def advance_cuda(
    batch: int,
    width: int,
    state: _State,
    target: _Logits,
    draft: _Draft,
    params: _Params,
    rule: int,
    next_window: int,
    num_emitted: int,
    num_accepted: int,
    queue: _Queue,
) -> None: ...
