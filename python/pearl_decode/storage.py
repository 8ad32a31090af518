"""How the matrices of a loaded model are stored on a CPU: rounded to 8 bits, packed."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from pearl_decode.huge_pages import HugePages
from pearl_decode.layer import LayerParts, WindowDecoderLayer
from pearl_decode.linear import WindowLinear
from pearl_decode.window_model import WHOLE, WindowModel
from pearl_kernels import packed


def store_in_int8(draft: PreTrainedModel) -> None:
    """Round the matrices of a draft that runs windows on a CPU to 8 bits: half as much to read as of 16.

    What it shares with its target stays as it is for that one, and its embedding for both.
    """
    for module in draft.modules():
        if isinstance(module, WindowLinear):
            module.store_in_int8()
    _look_again(draft)


def pack_weights(*models: PreTrainedModel) -> None:
    """Store the matrices that models multiply with on a CPU in the order in which they are read fastest.

    Those that models share they share still. Embeddings stay as they are, so a head that shares its own has a copy.
    """
    stored: dict[int, Tensor] = {}
    pages = HugePages(spare=False)  # as large as weights are, nobody asks for it soon
    for model in models:
        for module in model.modules():
            if not isinstance(module, WindowLinear) or module.weight.device.type != "cpu" or module.operands.is_packed:
                continue
            place = module.weight.data_ptr()
            if place not in stored:
                weight = packed(module.weight.detach())
                stored[place] = pages.empty(weight.shape, weight.dtype).copy_(weight)
            module.pack(stored[place])
        _look_again(model)


def _look_again(model: PreTrainedModel) -> None:
    """Let a model and its layers run with the weights they have now."""
    for module in model.modules():
        if isinstance(module, WindowDecoderLayer):
            module.parts = LayerParts(module)
    if hasattr(model, WHOLE):
        setattr(model, WHOLE, WindowModel(model))
