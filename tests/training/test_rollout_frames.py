"""The frames that a reward keeps are its own, whatever becomes of the workers' memory."""

import numpy as np
import pytest
import torch

from genreward_fast.training.rollout import _copied

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("envs", [[0, 1, 2, 3], [2], [1, 3]], ids=str)
def test_copies_outlive_the_frames(device, envs):
    frames = torch.randint(0, 256, (4, 5, 5, 3), dtype=torch.uint8)
    expected = frames[torch.tensor(envs)].clone()
    copied = _copied(frames, np.asarray(envs), torch.device(device))
    assert copied.device.type == device
    frames.zero_()
    assert torch.equal(copied.cpu(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("envs", [[0, 1, 2, 3], [1, 3]], ids=str)
def test_page_locked_frames_are_copied_without_a_wait(envs):
    frames = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8).pin_memory()
    torch.cuda.set_sync_debug_mode("error")
    try:
        copied = _copied(frames, np.asarray(envs), torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(copied.cpu(), frames[torch.tensor(envs)])
