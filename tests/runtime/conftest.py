"""Models and prompts the runtime tests share."""

from __future__ import annotations

import pytest
import torch

from pearl_decode import decoder
from pearl_decode.lanes import cpu
from tests.runtime.tiny import ARCHITECTURES, VOCAB, build


@pytest.fixture(autouse=True, scope="package")
def _one_torch_thread():
    """Over models this small more would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def static(monkeypatch):
    """Decoders that are made from here on have static rounds, as on a GPU."""
    monkeypatch.setattr(decoder, "has_static_rounds", lambda target: True)


@pytest.fixture
def one_core(monkeypatch):
    """More only wait for each other over models this small, where a machine is busy."""
    one = cpu.available_cores()[:1]
    monkeypatch.setattr(cpu, "available_cores", lambda: one)


@pytest.fixture(params=["dynamic", "static"])
def runtime(request, one_core):
    """Each runtime, on one core."""
    if request.param == "static":
        request.getfixturevalue("static")
    return request.param


@pytest.fixture(scope="session", params=list(ARCHITECTURES))
def target(request):
    return build(request.param)


@pytest.fixture(scope="session")
def llama():
    return build("llama")


@pytest.fixture(scope="session")
def near_llama():
    """The llama with a little noise on its weights: a draft that is often right."""
    model = build("llama")
    torch.manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.01 * weight.std() * torch.randn_like(weight) if weight.ndim > 1 else 0)
    return model


@pytest.fixture(scope="session")
def prompts():
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length in (6, 1, 19, 3, 11)]


@pytest.fixture
def greedy_reference():
    """transformers' own greedy text of a prompt."""

    def reference(model, prompt: list[int], count: int) -> list[int]:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
        )
        return output[0, len(prompt) :].tolist()

    return reference
