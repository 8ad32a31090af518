"""Lanes: where a model's work runs, beside the other model's."""

from pearl_decode.lanes.cpu import CpuLane
from pearl_decode.lanes.paced import PacedLane

__all__ = ["CpuLane", "PacedLane"]
