"""Parallel speculative decoding for any causal model of transformers.

from pearl_decode import PearlDecoder, SamplingParams

with PearlDecoder.from_pretrained("smollm2-135m", "first-layers:6") as decoder:
    print(decoder.generate("The capital of France is", SamplingParams(max_tokens=32)).text)
"""

from pearl_decode.decoder import PearlDecoder, TextStream
from pearl_decode.hook import generate
from pearl_decode.result import GenerationResult
from pearl_decode.sampling import SamplingParams
from pearl_decode.stats import DecodeStats

__all__ = ["DecodeStats", "GenerationResult", "PearlDecoder", "SamplingParams", "TextStream", "generate"]
