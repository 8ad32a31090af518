"""Caches that do not fit are an error before anything runs, or a warning where only the draft's does not."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch

from pearl_decode import PearlDecoder, SamplingParams, memory
from pearl_decode.models import CausalModel
from pearl_decode.placement import layer_devices
from tests.runtime.scripted import sequence_model
from tests.runtime.tiny import ARCHITECTURES, build, enlarged, gemma4

CPU = torch.device("cpu")
# Of one position of the tiny llama: 2 (keys and values) x 4 layers x 2 heads x 12 x 4 bytes.
POSITION_BYTES = 768


pytestmark = pytest.mark.usefixtures("runtime")


def test_too_little_memory_is_said_before_anything_runs(llama, prompts, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: POSITION_BYTES * 1000)
    monkeypatch.setattr(llama.config, "max_position_embeddings", 2**32)
    most = SamplingParams(max_tokens=2**31 - 1)  # for which there is no room on the host either
    with PearlDecoder(llama, strategy="autoregressive") as alone:
        [result] = alone.generate(prompts[:1], most)
        with pytest.raises(RuntimeError, match="the target's cache of 1 x "):
            alone.stream(prompts[0], most).finish()
    assert (result.finish_reason, result.token_ids) == ("error", [])
    assert "the target's cache of 1 x " in result.error
    assert "GiB are missing; lower max_tokens or gamma, or shorten the prompts" in result.error


def test_requests_that_do_not_fit_at_once_take_turns(llama, prompts, monkeypatch, caplog):
    """And only one that does not fit by itself ends with an error."""
    monkeypatch.setattr(llama.config, "max_position_embeddings", 2**32)
    counts = [9, 10, 2**31 - 1, 11, 12]
    params = [SamplingParams(max_tokens=count) for count in counts]
    asked = [prompts[row % len(prompts)] for row in range(5)]
    with PearlDecoder(llama, strategy="autoregressive", max_batch=4) as alone:
        wanted = [alone.generate([asked[row]], params[row])[0].token_ids for row in (0, 1, 3, 4)]
        caplog.clear()
        monkeypatch.setattr(memory, "free_bytes", lambda device: POSITION_BYTES * 1000)
        results = alone.generate(asked, params)
    assert [result.error is None for result in results] == [True, True, False, True, True]
    assert [result.token_ids for result in results if result.error is None] == wanted
    said = [record.getMessage().split("; ") for record in caplog.records]
    assert [now for *_, now in said] == ["at most 2 at once, this time", "at most 1 at once, this time"]
    assert all(remedy.startswith("lower max_batch, max_tokens or gamma") for _, remedy, _ in said)


@pytest.mark.parametrize("strategy", ["auto", "pearl"])
def test_a_draft_whose_cache_does_not_fit_is_left_out(runtime, llama, near_llama, prompts, strategy, monkeypatch):
    with PearlDecoder(llama) as alone:
        wanted = [r.token_ids for r in alone.generate(prompts[:1], SamplingParams(max_tokens=20))]
    # For one cache, which static rounds make larger, and not for two.
    monkeypatch.setattr(memory, "free_bytes", lambda device: POSITION_BYTES * (80 if runtime == "dynamic" else 800))
    with PearlDecoder(llama, near_llama, strategy=strategy, gamma=8 if strategy == "pearl" else "auto") as pair:
        with pytest.warns(RuntimeWarning, match="the draft's cache of 1 x .* the target goes on alone; lower"):
            results = pair.generate(prompts[:1], SamplingParams(max_tokens=20))
        assert [r.token_ids for r in results] == wanted
        assert results[0].stats.draft_forwards == 0
        monkeypatch.undo()
        [again] = pair.generate(prompts[:1], SamplingParams(max_tokens=20), strategy="pearl", gamma=3)
        assert again.token_ids == wanted[0]
        assert again.stats.draft_forwards > 0


def _gemma4(shared=0):
    """Layers of 2 heads of 12 numbers, and of 1 head of 20; the last `shared` look at those before."""
    heads = {"global_head_dim": 20, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
    return gemma4(**heads, num_kv_shared_layers=shared)


@pytest.mark.parametrize(
    ("make", "bytes_of"),
    [(ARCHITECTURES["llama"], [192] * 4), (_gemma4, [192, 160] * 2), (partial(_gemma4, shared=2), [192, 160])],
)
def test_what_a_cache_takes_is_what_it_is_said_to(runtime, make, bytes_of, prompts, greedy_reference):
    model = enlarged(make)
    with PearlDecoder(model, strategy="autoregressive") as alone:
        requests, _ = alone.start(prompts[:1], SamplingParams(max_tokens=9))
        engine = alone.runner.engine(requests, alone.plan)
        rounds = engine.run()
        if runtime == "static":
            list(rounds)
        else:
            next(rounds)  # the memory is given back at the end
        cache = engine.round.target.cache if runtime == "dynamic" else engine.kept.rounds[-1].batch.cache
        taken = [layer.keys.nbytes + layer.values.nbytes for layer in cache.layers]
        list(rounds)
    assert requests[0].token_ids == greedy_reference(model, prompts[0], 9)
    assert taken == [size * cache.capacity for size in bytes_of]
    assert memory.cache_bytes(alone.target, 1, cache.capacity) == sum(taken)
    assert memory.cache_bytes(CausalModel(sequence_model([1], 4)), 1, 10) == 0


def test_layers_that_differ_count_where_they_are(monkeypatch):
    model = _gemma4()
    monkeypatch.setattr(model, "hf_device_map", {"model": 0, "model.layers.1": 1, "lm_head": 0}, raising=False)
    gpus = [torch.device("cuda", i) for i in range(2)]
    assert memory.cache_bytes_by_device(CausalModel(model), 1, 1) == {gpus[0]: 2 * 192 + 160, gpus[1]: 160}


def test_each_device_of_a_spread_target_needs_room_for_its_own_layers(llama, monkeypatch):
    spread = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": "disk", "model.layers.2": 1}
    spread |= {"model.layers.3.self_attn": 1, "model.layers.3.mlp": 1, "model.norm": 1, "lm_head": 0}
    monkeypatch.setattr(llama, "hf_device_map", spread, raising=False)
    target, layer = CausalModel(llama), 10 * POSITION_BYTES // 4
    gpus = [torch.device("cuda", i) for i in range(2)]
    assert memory.cache_bytes_by_device(target, 1, 10) == {CPU: layer, gpus[0]: layer, gpus[1]: 2 * layer}
    free = {CPU: layer, gpus[0]: layer, gpus[1]: 2 * layer}
    monkeypatch.setattr(memory, "free_bytes", free.get)
    memory.check_room(target, 1, 10)
    free[gpus[1]] -= 1
    with pytest.raises(memory.NoRoomError, match="on cuda:1, where"):
        memory.check_room(target, 1, 10)


def _devices(*indices):
    return [CPU if index is None else torch.device("cuda", index) for index in indices]


@pytest.mark.parametrize(
    ("placed", "wanted"),
    [
        ({"": 1}, [1, 1, 1, 1]),
        ({"": "cuda:1"}, [1, 1, 1, 1]),
        ({"": "cpu"}, [None] * 4),
        ({"model": 0, "lm_head": 1}, [0, 0, 0, 0]),
        ({"model": torch.device("cuda", 1), "lm_head": 0}, [1, 1, 1, 1]),
        ({"model.embed_tokens": 0, "model.layers": 1, "model.norm": 1, "lm_head": 1}, [1, 1, 1, 1]),
        ({"model.layers.3": 2, "model": 1}, [1, 1, 1, 2]),
        ({"model.layers.1.mlp": 1, "model.layers.1.self_attn": 0, "model.layers": 2}, [2, 0, 2, 2]),
        ({"vision.layers.1": 1, "model.layers.10": 1, "lm_head": 0}, [None] * 4),
    ],
)
def test_a_layers_cache_is_where_the_map_puts_the_layer(llama, placed, wanted, monkeypatch):
    """However much of the model an entry names: the least that holds the layer counts."""
    monkeypatch.setattr(llama, "hf_device_map", placed, raising=False)
    assert layer_devices(llama) == _devices(*wanted)
    total, target = memory.cache_bytes(CausalModel(llama), 1, 8), CausalModel(llama)
    assert memory.cache_bytes_by_device(target, 1, 8) == {
        device: total * count // 4 for device, count in Counter(_devices(*wanted)).items()
    }


def test_layers_are_found_whatever_a_model_calls_them(monkeypatch):
    model = build("gpt2")
    monkeypatch.setattr(model, "hf_device_map", {"transformer.wte": 0, "transformer.h": 1}, raising=False)
    assert layer_devices(model) == _devices(1, 1, 1, 1)


def test_memory_of_captured_graphs_is_free_for_nobody_else(monkeypatch):
    def segment(device, pool, total, allocated):
        return {"device": device, "segment_pool_id": pool, "total_size": total, "allocated_size": allocated}

    segments = [
        segment(1, (0, 0), 50, 20),
        segment(1, (0, 3), 400, 7),
        segment(1, (0, 0), 9, 0),
        segment(0, (0, 0), 5, 0),
    ]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "native")
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    for name in ("cuda:1", "cuda"):
        assert memory.free_bytes(torch.device(name)) == 1000 + 30 + 9
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync")
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert memory.free_bytes(torch.device("cuda")) == 1000 + 400


def test_free_memory_is_the_machines_or_the_rest_of_a_containers_limit(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       100 kB\nMemFree: 5 kB\nMemAvailable:    70 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(memory, "CGROUPS", ((tmp_path, "memory.max", "memory.current", "inactive_file"),))
    assert memory.free_bytes(CPU) == 70 * 1024
    (tmp_path / "memory.current").write_text("30000\n")
    (tmp_path / "memory.stat").write_text("anon 9\ninactive_file 10000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(CPU) == 70 * 1024
    (tmp_path / "memory.max").write_text("50000\n")
    assert memory.free_bytes(CPU) == 50000 - 30000 + 10000
    meminfo.unlink()
    assert memory.free_bytes(CPU) == 30000
    (tmp_path / "memory.max").unlink()
    assert memory.free_bytes(CPU) is None
    assert memory.free_bytes(torch.device("meta")) is None
