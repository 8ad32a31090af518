"""Where the memory of the CUDA kernels is missing, torch gives back what it holds and does not use."""

from __future__ import annotations

import pytest
import torch

from pearl_kernels import _cuda


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    found: list[object] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: found.append("emptied"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return found


def failing(calls: list[object], *errors: str) -> object:
    left = list(errors)

    def operation(*arguments: object) -> None:
        calls.append(arguments)
        if left:
            raise RuntimeError(f"cuda backend: {left.pop(0)}")

    return operation


def test_memory_is_asked_for_once_more(calls: list[object]) -> None:
    _cuda.launch(failing(calls), 1, 2)
    assert calls == [(1, 2)]
    calls.clear()
    _cuda.launch(failing(calls, "out of memory"), 1, 2)
    assert calls == [(1, 2), "emptied", (1, 2)]


def test_what_stays_missing_is_an_error_of_torchs_kind(calls: list[object]) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="cuda backend: out of memory"):
        _cuda.launch(failing(calls, *["out of memory"] * 2))
    assert calls == [(), "emptied", ()]


def test_other_errors_are_what_they_are(calls: list[object]) -> None:
    for errors in (["invalid argument"], ["out of memory", "invalid argument"]):
        with pytest.raises(RuntimeError, match="cuda backend: invalid argument") as raised:
            _cuda.launch(failing(calls, *errors))
        assert not isinstance(raised.value, torch.OutOfMemoryError)


def test_a_capture_is_left_alone(calls: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        _cuda.launch(failing(calls, "out of memory"))
    assert calls == [()]
