"""Where the replay's rows are kept."""

from __future__ import annotations

import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.training import replay_storage
from genreward_fast.training.replay_config import ReplayConfig
from genreward_fast.training.replay_storage import RowStore, choose_device

GIB = 2**30


def config(**changes):
    sizes = {"num_envs": 2, "capacity": 200, "action_size": 4, "feature_dim": 384, "deter_size": 2048, "stoch_size": 32}
    return ReplayConfig(**(sizes | changes))


@pytest.mark.parametrize(("size", "kept_on"), [(5 * GIB, "cuda"), (5 * GIB + 1, "cpu")])
def test_rows_stay_on_the_gpu_up_to_half_of_its_free_memory(monkeypatch, size, kept_on):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 80 * GIB))
    monkeypatch.setattr(replay_storage, "free_bytes", lambda device: 64 * GIB)
    assert choose_device(size, "cuda").type == kept_on


def test_more_than_the_host_has_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (GIB, GIB))
    monkeypatch.setattr(replay_storage, "free_bytes", lambda device: 2**20)
    for device in ("cpu", "cuda"):
        with pytest.raises(UserError, match=r"needs 5.4 GB and this machine has 0.0 GB: lower its capacity"):
            choose_device(5 * GIB, device)


def test_a_row_has_the_size_of_its_fields():
    assert config().row_bytes() == 64 * 64 * 3 + 16 + 4 + 3 + 768 + 4096 + 32
    assert config(feature_dim=0, deter_dtype="float32").row_bytes() == 64 * 64 * 3 + 16 + 4 + 3 + 8192 + 32
    store = RowStore(config(), "cpu")
    assert sum(array.nbytes for array in store.arrays.values()) == 200 * config().row_bytes()
    assert store.arrays["deter"].dtype == torch.bfloat16
    assert store.arrays["feature"].dtype == torch.float16


@pytest.mark.gpu
@pytest.mark.parametrize("free", [0, 2**40])
def test_rows_in_either_memory_arrive_on_the_gpu(monkeypatch, free):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2**40))
    store = RowStore(config(image_size=8), "cuda")
    assert store.storage.type == ("cuda" if free else "cpu")
    index = torch.randint(0, 200, (5, 7), device="cuda")
    image = torch.randint(0, 256, (200, 8, 8, 3), dtype=torch.uint8)
    store.scatter(torch.arange(200), {"image": image})
    rows = store.gather(index, ["image"])["image"]
    assert rows.device.type == "cuda"
    assert torch.equal(rows.cpu(), image[index.cpu()])
    store.scatter_last(torch.tensor([[3, 3]]), {"stoch": torch.tensor([[[1] * 32, [2] * 32]], dtype=torch.uint8)})
    assert store.arrays["stoch"][3].cpu().tolist() == [2] * 32


@pytest.mark.gpu
def test_writing_rows_does_not_wait_for_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**40, 2**40))
    store = RowStore(config(image_size=8), "cuda")
    reward, feature = torch.randn(7), torch.randn(7, 384).half()
    on_device = feature.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        store.scatter(store.index(torch.arange(7).numpy()), {"reward": reward, "feature": on_device})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(store.arrays["reward"][:7].cpu(), reward)
    assert torch.equal(store.arrays["feature"][:7].cpu(), feature)
