"""Any causal model of transformers, seen as a function from windows of tokens to logits."""

from __future__ import annotations

import inspect
import logging
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from transformers import PreTrainedModel

from pearl_decode.attention import ATTENTION_NAME
from pearl_decode.cache import WindowCache, starts_on
from pearl_decode.limits import CACHE_ARGUMENTS, check_decodes_windows, longest_text
from pearl_decode.linear import multiplies_by_kernels
from pearl_decode.masks import ragged_masks
from pearl_decode.placement import is_spread
from pearl_decode.window_model import WHOLE, WindowModel
from pearl_kernels import DraftChain, Purpose, SamplingTensors, Window, induce_, kernels_alone

LOGGER = logging.getLogger(__name__)
MOST_WINDOW = 64  # new tokens per row; for longer texts torch's own attention is made
MOST_ROWS = 128  # of a window of a prompt where our kernels multiply: enough for arithmetic to be the cost
MOST_COMPILED = 256  # shapes, of all models together, before torch refuses to compile more


class CausalModel:
    """A loaded model with what the decoder asks of it.

    d2t: for a draft with a reduced vocabulary, the target id of each of its own ids (strictly increasing int64)
    induction: for a draft whose logits `induce_` adds to, the strengths, (most,) float32
    Raises ValueError for a model that cannot decode windows: no position_ids, recurrent layers, unknown attention.
    """

    def __init__(self, model: PreTrainedModel, role: str = "model") -> None:
        self.model: Any = model.eval()  # type: ignore[no-untyped-call]
        self.config: Any = model.config
        check_decodes_windows(role, model)
        text_config = self.config.get_text_config()
        parameters = inspect.signature(model.forward).parameters
        self._cache_argument = next(name for name in CACHE_ARGUMENTS if name in parameters)
        kept = parameters.get("logits_to_keep")
        self._keeps_rows = kept is not None
        # The head of a model that is spread may be on another device than the indices.
        self._keeps_by_index = kept is not None and "Tensor" in str(kept.annotation) and not is_spread(model)
        self._shares_cache = bool(getattr(text_config, "num_kv_shared_layers", None))
        self.vocab_size: int = text_config.vocab_size
        self.context = longest_text(role, text_config)
        self.d2t, self.induction = (self._beside(getattr(model, name, None)) for name in ("d2t", "induction"))
        self._known_ids: int = self._input_size()
        self._compiled: Any = None
        self._appends_later = True
        self._multiplies_by_kernels = multiplies_by_kernels(model)

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device

    def _beside(self, tensor: torch.Tensor | None) -> torch.Tensor | None:
        """On the model's device, wherever that was moved: the tensor is none of its weights."""
        return None if tensor is None else tensor.to(self.device)

    def _input_size(self) -> int:
        embedding = getattr(self.model, "get_input_embeddings", lambda: None)()
        return getattr(embedding, "num_embeddings", self.vocab_size)

    def eos_ids(self) -> list[int]:
        """End-of-sequence ids of the model's generation config, or of its config."""
        generation = getattr(self.model, "generation_config", None)
        ids = getattr(generation, "eos_token_id", None)
        if ids is None:
            ids = getattr(self.config.get_text_config(), "eos_token_id", None)
        if ids is None:
            return []
        return [int(i) for i in ids] if isinstance(ids, (list, tuple)) else [int(ids)]

    def read(self, input_ids: torch.Tensor, start: int, cache: WindowCache) -> None:
        """Cache tokens (batch, width) int64, at least one of every row, from position `start` on.

        Where kernels multiply, long texts are read in windows of so many rows that arithmetic is the cost.
        """
        batch, width = input_ids.shape
        if self.runs_at_once(cache):
            self._the_whole.reserve(batch, cache)
        windows = -(-width // max(1, MOST_ROWS // batch)) if self.runs_by_kernels else 1
        for begin, end in pairwise(width * i // windows for i in range(windows + 1)):
            self.forward(input_ids[:, begin:end], [start + begin] * batch, cache, keep=0)

    def forward(self, input_ids: torch.Tensor, starts: list[int], cache: WindowCache, keep: int) -> torch.Tensor:
        """Logits of the last `keep` tokens of each row, which may be none: (batch, keep, vocab).

        input_ids: (batch, width) int64; row b's tokens stand at positions starts[b] ... starts[b] + width - 1
        and their keys and values are written there.
        """
        longest = MOST_ROWS if self.runs_by_kernels else MOST_WINDOW
        if self.reads_lengths and (input_ids.shape[1] <= longest or min(starts) != max(starts)):
            with self.kernels_alone():
                return self._window_logits(input_ids, starts, cache, keep)
        ragged = cache.place(starts, input_ids.shape[1], input_ids.device)
        if ragged is not None:
            mask = ragged_masks(self.config, ragged, cache.view, self.model.dtype)
            return self._logits(self.model, input_ids, ragged, mask, cache, keep)
        positions = torch.arange(starts[0], starts[0] + input_ids.shape[1], device=input_ids.device)[None]
        return self._logits(self.model, input_ids, positions.expand(input_ids.shape[0], -1), None, cache, keep)

    def _window_logits(self, input_ids: torch.Tensor, starts: list[int], cache: WindowCache, keep: int) -> torch.Tensor:
        first = starts_on(input_ids.device, starts)
        positions = first[:, None] + torch.arange(input_ids.shape[1], device=input_ids.device)
        cache.place_windows(starts, positions, appends_later=self._appends_later)
        logits = self._logits(self.model, input_ids, positions, first[:, None, None, None], cache, keep)
        if self._appends_later and cache.left_behind():
            self._appends_later = False  # this model's attention looks at copies of what the cache gave it
            return self._window_logits(input_ids, starts, cache, keep)
        return logits

    @property
    def _whole(self) -> WindowModel | None:
        """What runs the model as one call, unless it has changed."""
        whole: WindowModel | None = getattr(self.model, WHOLE, None)
        return whole

    @property
    def _the_whole(self) -> WindowModel:
        whole = self._whole
        assert whole is not None, "a model that does not run at once"
        return whole

    @property
    def is_whole(self) -> bool:
        """Whether it is one call on a CPU, unless it has changed or somebody looks on."""
        return self._whole is not None and self.runs_by_kernels and self._appends_later

    def runs_at_once(self, cache: WindowCache) -> bool:
        """Whether it is one call now, over a cache: `draft`, `window` and `empty_logits` are for such a model."""
        whole = self._whole
        return whole is not None and self._compiled is None and whole.is_ready(cache)

    def window(self, cache: WindowCache, batch: int) -> Window:
        """A window of so many rows, of any tokens at any place, over a cache."""
        return self._the_whole.window(batch, cache)

    def empty_logits(self, batch: int) -> torch.Tensor:
        """(batch, all columns that there are) like the logits of a `draft`."""
        return self._the_whole.empty_logits(batch)

    def drawn_from(self, vocab_size: int) -> int | None:
        """Columns of a draft's logits that it draws from, the first ones, for a target of so many ids; None: all."""
        return min(vocab_size, self.vocab_size) if self.d2t is None else None

    def induced(self, cache: WindowCache, tokens: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Text and strengths of a draft's induction, where it has one. tokens: (batch, ...)"""
        return (None, None) if self.induction is None else (cache.text(tokens), self.induction)

    def draft(
        self,
        input_ids: torch.Tensor,
        starts: torch.Tensor,
        cache: WindowCache,
        params: SamplingTensors,
        steps: int,
        vocab_size: int,
        *,
        purpose: Purpose,
        epochs: torch.Tensor | None,
        lengths: torch.Tensor | None = None,
        out: DraftChain | None = None,
    ) -> DraftChain:
        """Draw `steps` tokens after each row, one after the other, from the first vocab_size ids of the target's.

        input_ids, starts: as in `forward_at`; the others as in `pearl_kernels.draft_chain`
        """
        text, strengths = self.induced(cache, input_ids)
        with self.kernels_alone():
            return self._the_whole.draft(
                input_ids, starts, cache, params, steps=steps, vocab=self.drawn_from(vocab_size), purpose=purpose,
                epochs=epochs, d2t=self.d2t, text=text, strengths=strengths, lengths=lengths, out=out,
            )  # fmt: skip

    def forward_at(
        self, input_ids: torch.Tensor, starts: torch.Tensor, cache: WindowCache, view: int, keep: int
    ) -> torch.Tensor:
        """As `forward`, with starts (batch,) int64 on the device: nothing is read back, and no shape depends on them.

        view: cached positions looked at, at least each start + width
        """
        if self.induction is None and self.runs_at_once(cache):
            return self._the_whole.logits_at(input_ids, starts, cache, keep)
        # A compiled model appends by itself: what the cache's tensors carry is lost on the way.
        later = self.reads_lengths and self._appends_later and self._compiled is None
        positions = cache.place_at(starts, input_ids.shape[1], view, appends_later=later)
        if self.reads_lengths:
            mask = starts[:, None, None, None]
        else:
            mask = ragged_masks(self.config, positions, view, self.model.dtype)
        if self._compiled is None:
            logits = self._logits(self.model, input_ids, positions, mask, cache, keep)
            if later and cache.left_behind():
                self._appends_later = False
                return self.forward_at(input_ids, starts, cache, view, keep)
            return logits
        try:
            with torch._dynamo.config.patch(recompile_limit=MOST_COMPILED):
                return self._logits(self._compiled, input_ids, positions, mask, cache, keep)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            LOGGER.warning("%s runs as it is, torch cannot compile it here: %s", type(self.model).__name__, error)
            self._compiled = None
            return self.forward_at(input_ids, starts, cache, view, keep)  # as all later ones, which may be captured

    def compile(self, **options: Any) -> None:
        """Let `forward_at` run the model with its small kernels fused: once for each batch size, width and view.

        Compiling takes up to minutes for each, the first time; torch keeps what it made on disk, for later runs too.
        A model that cannot be compiled runs as it is, and the log says why.
        options: of torch.compile
        """
        self._compiled = torch.compile(self.model, fullgraph=True, dynamic=False, **options)

    @property
    def reads_lengths(self) -> bool:
        """Whether attention reads no more of the cache than each row has, however far it looks."""
        return bool(self.config._attn_implementation == ATTENTION_NAME)

    @property
    def runs_by_kernels(self) -> bool:
        """Whether its products and its attention over windows are our kernels' on a CPU."""
        return self.reads_lengths and self._multiplies_by_kernels

    def kernels_alone(self) -> AbstractContextManager[None]:
        """`pearl_kernels.kernels_alone` where kernels run this model: for forwards and what is done between them."""
        return kernels_alone() if self.runs_by_kernels else nullcontext()

    @property
    def is_compiled(self) -> bool:
        return self._compiled is not None

    @property
    def wants_one_view(self) -> bool:
        """Whether `forward_at` is better off with one view for all lengths: as every other one is compiled anew, or
        costs nothing."""
        return self.reads_lengths or self.is_compiled

    def _logits(
        self, run: Any, input_ids: torch.Tensor, positions: torch.Tensor, mask: Any, cache: WindowCache, keep: int
    ) -> torch.Tensor:
        whole = self._whole if run is self.model else None
        logits = None if whole is None else whole.logits(input_ids, mask, cache, keep)
        if logits is None:
            # A draft may be padded to fewer ids than the target: an id it does not know costs a refusal at most.
            known_ids = input_ids.clamp(max=self._known_ids - 1)
            # Only tokens past the end of a request reach the limit of the context: drafted, never committed.
            within = positions if self.context is None else positions.clamp(max=self.context - 1)
            logits = self.call(run, known_ids, within, mask, cache, keep)
        if self.induction is not None:
            text = cache.remember(input_ids, positions)
            for column in range(-keep, 0):
                induce_(logits[:, column], text, positions[:, column] + 1, self.induction, d2t=self.d2t)
        return logits

    def call(
        self, run: Any, input_ids: torch.Tensor, positions: torch.Tensor, mask: Any, cache: WindowCache, keep: int
    ) -> torch.Tensor:
        """What `run`, the model or the model compiled, gives for the last `keep` columns, with these very arguments."""
        named: dict[str, Any] = {self._cache_argument: cache}
        if self._keeps_rows:
            named["logits_to_keep"] = self._last(keep, input_ids)
        output = run(input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=True, **named)
        logits: torch.Tensor = output.logits
        return logits[:, logits.shape[1] - keep :]

    def _last(self, keep: int, input_ids: torch.Tensor) -> int | torch.Tensor:
        """The last `keep` columns, which may be none, as models take them.

        By their indices if they are not all: a slice is not dense, so torch would multiply the head with each row by
        itself, on a CPU after a copy of the head for each.
        """
        width = input_ids.shape[1]
        # Where no logits are wanted, and layers look at what others cache, a number lets the model skip those layers.
        if keep == width or not self._keeps_by_index or (keep == 0 and self._shares_cache):
            return max(keep, 1)
        return torch.arange(width - keep, width, device=input_ids.device)
