"""The weights of one decoder layer, looked at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pearl_kernels.window_linear import Linear, check_linear

ROW_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LinearLike = tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, Tensor | None] | Linear


def check_vector(
    operation: str, name: str, vector: Tensor, length: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> None:
    """Raise ValueError unless a vector is (length,) of dtype and contiguous on the device."""
    if vector.shape != (length,) or vector.dtype is not dtype or not vector.is_contiguous():
        raise ValueError(
            f"{operation}: {name} must be ({length},) {str(dtype)[6:]} and contiguous, "
            f"got {vector.dtype} of {tuple(vector.shape)}"
        )
    if vector.device != device:
        raise ValueError(f"{operation}: {name} must be on {device}, got {vector.device}")


class LayerWeights:
    """What `window_layer` multiplies with. The tensors are the caller's; their values and addresses may change later.

    attention_norm, mlp_norm: (size,), of the type of the rows that go through the layer
    q, k, v:                  layers of weight (heads * head_dim, size), for k and v with kv_heads
    output:                   (size, heads * head_dim)
    gate, up:                 (inner, size)
    down:                     (size, inner)
    q_norm, k_norm:           (head_dim,) of that type, of each head; None: not normed
    eps:                      of all norms
    Layers are a `Linear` or a tuple of the same: a weight as `window_linear` takes it, a bias of that type or None, a
    scale if the weight is int8.
    Raises ValueError naming the argument, what was expected and what came.
    """

    LINEARS = ("q", "k", "v", "output", "gate", "up", "down")
    NORMS = ("attention_norm", "mlp_norm", "q_norm", "k_norm")

    def __init__(
        self,
        attention_norm: Tensor,
        q: LinearLike,
        k: LinearLike,
        v: LinearLike,
        output: LinearLike,
        mlp_norm: Tensor,
        gate: LinearLike,
        up: LinearLike,
        down: LinearLike,
        *,
        head_dim: int,
        eps: float,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
    ) -> None:
        self.linears = [Linear(*linear) for linear in (q, k, v, output, gate, up, down)]
        self.norms = (attention_norm, mlp_norm, q_norm, k_norm)
        given = (*(tensor for linear in self.linears for tensor in linear[:3]), *self.norms)
        self.tensors = [tensor for tensor in given if tensor is not None]
        self.head_dim, self.eps = head_dim, eps
        of_q, of_k = (linear.out_features for linear in self.linears[:2])
        if head_dim < 2 or head_dim % 2 or of_q % head_dim or of_k % head_dim:
            raise ValueError(
                f"window_layer: head_dim must be even and divide the {of_q} outputs of q and the {of_k} of k, "
                f"got {head_dim}"
            )
        if not eps >= 0:
            raise ValueError(f"window_layer: eps must be at least 0, got {eps!r}")
        self.heads, self.kv_heads = of_q // head_dim, of_k // head_dim
        if not self.kv_heads or self.heads % self.kv_heads:
            raise ValueError(
                f"window_layer: q must have a multiple of k's {self.kv_heads} heads, got {self.heads} heads"
            )
        self.dtype = attention_norm.dtype
        if self.dtype not in ROW_DTYPES:
            raise ValueError(f"window_layer: attention_norm must be float32, bfloat16 or float16, got {self.dtype}")
        self.size, self.inner = attention_norm.numel(), self.linears[4].out_features
        self.sizes = self.size, self.heads, self.kv_heads, head_dim, self.inner
        self._check_shapes()

    def _check_shapes(self) -> None:
        size, inner, wide, narrow = self.size, self.inner, self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = (
            (wide, size),
            (narrow, size),
            (narrow, size),
            (size, wide),
            (inner, size),
            (inner, size),
            (size, inner),
        )
        device = self.norms[0].device
        for name, linear, shape in zip(self.LINEARS, self.linears, shapes, strict=True):
            check_linear("window_layer", name, linear, self.dtype)
            found = linear.out_features, linear.in_features
            if found != shape:
                raise ValueError(f"window_layer: {name} must be of shape {shape}, got {found}")
            if linear.weight.device != device:
                raise ValueError(f"window_layer: {name} must be on {device}, got {linear.weight.device}")
        for name, norm, length in zip(self.NORMS, self.norms, (size, size, *[self.head_dim] * 2), strict=True):
            if norm is not None:
                check_vector("window_layer", name, norm, length, device, self.dtype)

    def as_lists(
        self,
    ) -> tuple[list[Tensor | None], list[Tensor], list[Tensor | None], list[Tensor | None], list[int]]:
        """norms, and of the linear layers weights, biases, scales and outputs."""
        weights, biases, scales, _ = (list(column) for column in zip(*self.linears, strict=True))
        return list(self.norms), weights, biases, scales, [linear.out_features for linear in self.linears]

    @classmethod
    def of_lists(
        cls,
        norms: Sequence[Tensor | None],
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        scales: Sequence[Tensor | None],
        outputs: Sequence[int],
        eps: float,
        head_dim: int,
    ) -> LayerWeights:
        """The inverse of `as_lists`."""
        attention_norm, mlp_norm, q_norm, k_norm = norms
        assert attention_norm is not None
        assert mlp_norm is not None
        q, k, v, output, gate, up, down = map(Linear, weights, biases, scales, outputs)
        return cls(
            attention_norm, q, k, v, output, mlp_norm, gate, up, down,
            head_dim=head_dim, eps=eps, q_norm=q_norm, k_norm=k_norm,
        )  # fmt: skip


def as_one(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The parts as one tensor, where they are parts of one, in order and nothing between them."""
    first = parts[0]
    if first is None:
        return None
    memory, end, rows = first.untyped_storage().data_ptr(), first.data_ptr(), 0
    for part in parts:
        if part is None or part.untyped_storage().data_ptr() != memory:  # whose neighbour it may be by chance
            return None
        if part.data_ptr() != end or not part.is_contiguous():
            return None
        end, rows = end + part.nbytes, rows + len(part)
    return first.detach().as_strided((rows, *first.shape[1:]), first.stride())
