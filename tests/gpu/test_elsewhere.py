"""Tensors that go to another device and back are what they were. Needs no GPU: a copy on the CPU is elsewhere too."""

from __future__ import annotations

import torch

from pearl_kernels import VerifyOutput
from tests.gpu.elsewhere import CPU, Elsewhere, moved, run_on
from tests.kernels.cases import VerifyCase, strided, verify_case


def test_a_copy_has_the_strides_and_the_surroundings_of_the_original() -> None:
    original = strided(torch.randn(3, 4, 7)).transpose(0, 1)
    copy = moved(original, CPU)
    assert copy.data_ptr() != original.data_ptr()
    assert copy.stride() == original.stride()
    assert torch.equal(copy, original)
    assert copy.as_strided((3,), (1,), 0).isnan().all()


def test_what_shares_memory_shares_it_in_the_copy_and_comes_back_once() -> None:
    buffer = torch.zeros(2, 6)
    there = Elsewhere(CPU)
    copy = there.copy({"whole": buffer, "view": (buffer[1],), "expanded": buffer[:1].expand(5, -1)})
    copy["view"][0][2] = 4.0
    assert copy["whole"][1, 2] == 4.0
    assert buffer[1, 2] == 0.0
    there.bring_back()
    assert buffer[1, 2] == 4.0


def test_cases_are_copied_with_their_types() -> None:
    case = verify_case(3, 2, 9, mapped=True)
    copy = moved(case, CPU)
    assert isinstance(copy, VerifyCase)
    assert copy.rule == case.rule
    assert copy.d2t is not case.d2t
    for a, b in zip(copy.run("reference"), case.run("reference"), strict=True):
        assert torch.equal(a, b)


def test_an_operation_elsewhere_writes_back_and_returns_what_it_was_given() -> None:
    def door(values: torch.Tensor, *, backend: str | None, out: VerifyOutput) -> VerifyOutput:
        assert values.data_ptr() != here.data_ptr()
        values.add_(1)
        for tensor in out:
            tensor.fill_(7)
        return out

    here, out = torch.zeros(2), VerifyOutput(*(torch.zeros(2) for _ in range(3)))
    assert run_on(CPU, door, ("cuda",))(here, backend="cuda", out=out) is out
    assert here.tolist() == [1.0, 1.0]
    assert [tensor.tolist() for tensor in out] == [[7.0, 7.0]] * 3
