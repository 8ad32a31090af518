"""Kernels for parallel speculative decoding: sampling, verification, and the step that commits a round.

Each operation is a torch.library op with several backends; `backends()` says which run here and why the
others do not. Nothing here knows of models, caches or loops.
"""

from pearl_kernels.advance import advance_
from pearl_kernels.dispatch import Backend, backends
from pearl_kernels.draft_chain import DraftChain, draft_chain
from pearl_kernels.induction import induce_
from pearl_kernels.rounds import Drafter, DraftRows, RoundOutput, Rounds, runs_rounds
from pearl_kernels.sample import sample
from pearl_kernels.threads import kernels_alone, release_threads
from pearl_kernels.types import (
    AdvanceOutput,
    DecodeState,
    Finished,
    Purpose,
    RowStats,
    SampleOutput,
    SamplingTensors,
    Status,
    VerifyOutput,
)
from pearl_kernels.verify import verify
from pearl_kernels.window_attention import window_attention
from pearl_kernels.window_decoder import DecoderWeights, Window, window_decoder
from pearl_kernels.window_layer import LayerWeights, window_layer
from pearl_kernels.window_linear import Linear, packed, quantized, unpacked, window_linear, window_linears
from pearl_kernels.window_norm import window_norm

__all__ = [
    "AdvanceOutput",
    "Backend",
    "DecodeState",
    "DecoderWeights",
    "DraftChain",
    "DraftRows",
    "Drafter",
    "Finished",
    "LayerWeights",
    "Linear",
    "Purpose",
    "RoundOutput",
    "Rounds",
    "RowStats",
    "SampleOutput",
    "SamplingTensors",
    "Status",
    "VerifyOutput",
    "Window",
    "advance_",
    "backends",
    "draft_chain",
    "induce_",
    "kernels_alone",
    "packed",
    "quantized",
    "release_threads",
    "runs_rounds",
    "sample",
    "unpacked",
    "verify",
    "window_attention",
    "window_decoder",
    "window_layer",
    "window_linear",
    "window_linears",
    "window_norm",
]
