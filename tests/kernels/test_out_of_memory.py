"""Where the memory of the CUDA kernels is missing, torch gives back what it holds and does not use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, TimeoutError

import pytest
import torch

from pearl_kernels import _cuda, captures


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    found: list[object] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: found.append("emptied"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return found


LACKING = MemoryError("std::bad_alloc")  # what the extension raises before it queues anything


def failing(calls: list[object], *errors: Exception) -> object:
    left = list(errors)

    def operation(*arguments: object) -> None:
        calls.append(arguments)
        if left:
            raise left.pop(0)

    return operation


def test_memory_is_asked_for_once_more(calls: list[object]) -> None:
    _cuda.launch(failing(calls), 1, 2)
    assert calls == [(1, 2)]
    calls.clear()
    _cuda.launch(failing(calls, LACKING), 1, 2)
    assert calls == [(1, 2), "emptied", (1, 2)]


def test_what_stays_missing_is_an_error_of_torchs_kind(calls: list[object]) -> None:
    with pytest.raises(torch.OutOfMemoryError, match="cuda backend: out of memory"):
        _cuda.launch(failing(calls, LACKING, LACKING))
    assert calls == [(), "emptied", ()]


def test_other_errors_are_what_they_are(calls: list[object]) -> None:
    other = RuntimeError("cuda backend: out of memory")  # of a kernel: others may have been queued before
    for errors in ([other], [LACKING, other]):
        with pytest.raises(RuntimeError) as raised:
            _cuda.launch(failing(calls, *errors))
        assert raised.value is other
    assert calls == [(), (), "emptied", ()]


def test_a_capture_is_left_alone(calls: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        _cuda.launch(failing(calls, LACKING))
    assert calls == [()]


def test_memory_is_given_back_when_no_other_thread_captures(calls: list[object]) -> None:
    with ThreadPoolExecutor(1) as pool:
        with captures.turn:
            other = pool.submit(_cuda.launch, failing(calls, LACKING))
            with pytest.raises(TimeoutError):
                other.result(0.1)
            calls.append("captured")
        other.result(10)
    assert calls == [(), "captured", "emptied", ()]
