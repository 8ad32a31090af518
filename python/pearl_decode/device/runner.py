"""Static rounds for a decoder: its lanes, what it compiles, and what it keeps from one batch for the next."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from pearl_decode.attention import use_window_attention
from pearl_decode.costs import Costs
from pearl_decode.device.engine import DeviceEngine, DeviceOptions
from pearl_decode.device.kept import Kept
from pearl_decode.device.shape import COMPILED_WIDTHS, WIDTHS
from pearl_decode.engine import Plan
from pearl_decode.lanes.cuda import HIGH, NORMAL, CudaLane
from pearl_decode.lanes.queue import DeviceLane, InlineLane
from pearl_decode.layer import Found, join_weights, switch_layers, switch_layers_back
from pearl_decode.models import CausalModel
from pearl_decode.norm import FoundNorms, find_norms, switch_norms, switch_norms_back
from pearl_decode.past import Past
from pearl_decode.placement import is_spread
from pearl_decode.request import Request
from pearl_decode.runner import check_devices
from pearl_decode.trials import agreeing_layers, run_as_one, try_window_attention
from pearl_decode.waiting import Waiting
from pearl_decode.window_model import WHOLE, WindowModel
from pearl_kernels import backends

LOGGER = logging.getLogger(__name__)
# What a trial of our attention said against each model, or None: transformers' hook makes a runner for every call.
_REFUSALS: WeakKeyDictionary[PreTrainedModel, str | None] = WeakKeyDictionary()
# What of a model runs as ours, by other trials.
_NORMS: WeakKeyDictionary[PreTrainedModel, FoundNorms] = WeakKeyDictionary()
_LAYERS: WeakKeyDictionary[PreTrainedModel, Found] = WeakKeyDictionary()
_WHOLES: WeakKeyDictionary[PreTrainedModel, WindowModel | None] = WeakKeyDictionary()
# Graphs of inductor's own would copy what ours reads and writes in place.
NO_GRAPHS = {"triton.cudagraphs": False}


@dataclass(eq=False)
class Switched:
    """What of a model runs as ours, as long as a decoder uses it.

    attention: what it attended with before
    users:     how many decoders there are
    """

    attention: str
    users: int = 0
    norms: FoundNorms = field(default_factory=list)
    layers: Found = field(default_factory=list)
    is_whole: bool = False


_SWITCHED: WeakKeyDictionary[PreTrainedModel, Switched] = WeakKeyDictionary()


class DeviceRunner:
    """Makes the engine of each batch of one pair of models.

    compile: fuse the models' small kernels; None: on a GPU, of models whose layers are not all run as `window_layer`.
             For models that are compiled, gamma "auto" chooses among fewer widths, as each takes up to a minute the
             first time
    options: None is the default ones, with COMPILED_WIDTHS or WIDTHS
    costs:   what is known of the pair
    Raises ValueError for a target on a GPU whose draft is not on one.
    """

    def __init__(
        self,
        target: CausalModel,
        draft: CausalModel | None,
        *,
        compile: bool | None = None,
        options: DeviceOptions | None = None,
        costs: Costs | None = None,
    ) -> None:
        self.target = target
        self.draft = draft
        self.lanes = lanes_of(target, draft)
        self.costs = costs or Costs()
        self.kept = Kept()
        self._addresses: list[int] = []  # of the weights that kept rounds read
        self._switched: list[PreTrainedModel] = []
        compiled = False
        try:
            for role, model, other in (("target", target, draft), ("draft", draft, target)):
                if model is None:
                    continue
                as_written = target.device.type == "cuda" and not self._switch(role, model, other)
                if (as_written and not is_spread(model.model)) if compile is None else compile:
                    model.compile(options=NO_GRAPHS)
                    compiled = True
        except BaseException:
            self.close()
            raise
        self.options = options or DeviceOptions(widths=COMPILED_WIDTHS if compiled else WIDTHS)

    def engine(
        self,
        requests: list[Request],
        plan: Plan,
        past: Past | None = None,
        waiting: Waiting | None = None,
    ) -> DeviceEngine:
        """Prompts are read as a whole, whatever the past."""
        self._forget_moved_weights()
        return DeviceEngine(
            requests, self.target, self.draft, self.lanes, plan, self.options, self.kept, self.costs, waiting
        )

    def _forget_moved_weights(self) -> None:
        """Keep nothing that reads weights where they are no more; what batches that run read is given to nobody."""
        models = [each.model for each in (self.target, self.draft) if each is not None]
        addresses = [part.data_ptr() for model in models for part in (*model.parameters(), *model.buffers())]
        if addresses != self._addresses:
            self.kept.clear()
            self.kept, self._addresses = Kept(), addresses

    def close(self) -> None:
        """Let go of what was kept, when nothing of it runs any more, and leave the models as they were."""
        self.kept.clear()
        for model in self._switched:
            _switch_back(model)
        self._switched.clear()

    def _switch(self, role: str, model: CausalModel, other: CausalModel | None) -> bool:
        """Let a model run what is ours for this decoder too. Returns whether all its layers do."""
        switched = _SWITCHED.setdefault(model.model, Switched(model.config._attn_implementation))
        switched.users += 1
        self._switched.append(model.model)
        if switched.users == 1:
            _switch(role, model, () if other is None else other.model.parameters(), switched)
        return _has_all_layers(model, switched)


def lanes_of(target: CausalModel, draft: CausalModel | None) -> tuple[DeviceLane, DeviceLane]:
    """Target and draft lane. On one GPU the draft's short kernels go first; two GPUs have a lane each."""
    check_devices(target, draft)
    draft_device = target.device if draft is None else draft.device
    if target.device.type != "cuda":
        return InlineLane(target.device), InlineLane(draft_device)
    lane = CudaLane(target.device, can_capture=not is_spread(target.model))
    shared = draft_device == target.device
    if not shared and not torch.cuda.can_device_access_peer(target.device, draft_device):
        LOGGER.warning(
            "%s and %s cannot see each other: drafts are copied by way of the host", lane.device, draft_device
        )
    spread = draft is not None and is_spread(draft.model)
    return lane, CudaLane(draft_device, HIGH if shared else NORMAL, can_capture=not spread)


def _switch(role: str, model: CausalModel, others: Iterable[nn.Parameter], switched: Switched) -> None:
    """Let a model run what is ours, as far as trials give the same. others: as in `_use_layers`"""
    if not _read_lengths(role, model) or is_spread(model.model) or not backends()["triton"].available:
        return
    switched.norms = _use_norms(model.model)
    switched.layers = _use_layers(role, model.model, others)
    if _has_all_layers(model, switched):
        switched.is_whole = _run_as_one(role, model.model)


def _has_all_layers(model: CausalModel, switched: Switched) -> bool:
    count: int = model.config.get_text_config().num_hidden_layers
    return len(switched.layers) == count


def _switch_back(model: PreTrainedModel) -> None:
    """One decoder less uses a model, which is as it was when none does any more."""
    switched = _SWITCHED[model]
    switched.users -= 1
    if switched.users:
        return
    del _SWITCHED[model]
    if switched.is_whole:
        delattr(model, WHOLE)
    switch_layers_back(switched.layers)
    switch_norms_back(switched.norms)
    if model.config._attn_implementation != switched.attention:
        model.set_attn_implementation(switched.attention)


def _read_lengths(role: str, model: CausalModel) -> bool:
    """Let attention read no more of a cache than each row has, if it was left to transformers' own choice.

    Returns whether it does, now or already.
    """
    if model.config._attn_implementation != "sdpa":
        return model.reads_lengths
    if model.model not in _REFUSALS:
        try:
            _REFUSALS[model.model] = try_window_attention(model.model)
        except torch.OutOfMemoryError as error:
            LOGGER.warning("%s: attention looks at the longest row's length for all rows, this time: %s", role, error)
            return False
    elif _REFUSALS[model.model] is None:
        use_window_attention(model.model)
    refusal = _REFUSALS[model.model]
    if refusal is not None:
        LOGGER.warning("%s: attention looks at the longest row's length for all rows: %s", role, refusal)
    return refusal is None


def _use_norms(model: PreTrainedModel) -> FoundNorms:
    """Let norms run as `window_norm`. Returns those that now do."""
    if model not in _NORMS:
        _NORMS[model] = find_norms(model)
    switch_norms(_NORMS[model])
    return list(_NORMS[model])


def _use_layers(role: str, model: PreTrainedModel, others: Iterable[nn.Parameter] = ()) -> Found:
    """Let decoder layers of known models run as `window_layer`: a fourth of the kernels, which for a few rows take
    about as long to begin as to run. Returns those that now do. others: parameters that may share its weights' memory
    """
    if model not in _LAYERS:
        try:
            found = agreeing_layers(model)
            join_weights(found, others)
        except torch.OutOfMemoryError as error:
            LOGGER.warning("%s: its layers run as they are written, this time: %s", role, error)
            return []
        _LAYERS[model] = found
    switch_layers(_LAYERS[model])
    return list(_LAYERS[model])


def _run_as_one(role: str, model: PreTrainedModel) -> bool:
    """Let a model whose layers all run as `window_layer` run as one call. Returns whether it now does."""
    if model not in _WHOLES:
        try:
            _WHOLES[model] = run_as_one(model)
        except torch.OutOfMemoryError as error:
            LOGGER.warning("%s: it runs layer by layer, this time: %s", role, error)
            return False
    elif _WHOLES[model] is not None:
        setattr(model, WHOLE, _WHOLES[model])
    return _WHOLES[model] is not None
