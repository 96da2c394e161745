from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from genreward_fast.kernels import latent_cosine as module
from genreward_fast.kernels.latent_cosine import latent_cosine, latent_cosine_reference

SHAPES = [(1, 7), (3, 1), (2, 1023), (2, 1024), (5, 1025), (2, 16, 4, 9, 11)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# The last one has more than 256 blocks of 1024, so that some programs get two.
CASES = [*((shape, dtype) for shape in SHAPES for dtype in DTYPES), ((1, 262_145), torch.bfloat16)]


def inputs(shape, dtype, generator):
    """Latents that point roughly towards the goal, as those of a good agent do."""
    goal = torch.randn(shape[1:], generator=generator)
    goal = goal / goal.norm()
    latent = torch.randn(shape, generator=generator) + 0.5 * goal * goal.numel() ** 0.5
    return latent.to(dtype), goal


def cosine(latent, goal):
    """In float64."""
    return functional.cosine_similarity(latent.double().flatten(1), goal.double().flatten()[None], dim=1)


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_reference_is_the_cosine(shape, dtype, fresh_generator, relative_rms):
    latent, goal = inputs(shape, dtype, fresh_generator)
    expected = cosine(latent, goal)
    assert relative_rms(latent_cosine_reference(latent, goal), expected) < 1e-5
    assert relative_rms(latent_cosine(latent, goal), expected) < 1e-5


@pytest.mark.parametrize(("shape", "dtype"), CASES)
def test_on_triton_agrees_with_the_reference(shape, dtype, triton_device, poisoned, fresh_generator, relative_rms):
    latent, goal = inputs(shape, dtype, fresh_generator)
    value = latent_cosine(latent.to(triton_device), goal.to(triton_device)).cpu()
    assert value.shape == shape[:1]
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert relative_rms(value, cosine(latent, goal)) < 1e-5


def test_on_triton_rows_do_not_depend_on_the_batch(triton_device, fresh_generator):
    latent, goal = inputs((4, 5000), torch.bfloat16, fresh_generator)
    latent, goal = latent.to(triton_device), goal.to(triton_device)
    together = latent_cosine(latent, goal)
    assert torch.equal(together, torch.cat([latent_cosine(row[None], goal) for row in latent]))
    assert torch.equal(together, latent_cosine(latent, goal))


@pytest.mark.parametrize("programs", [1, 4])
@pytest.mark.parametrize("size", [3, 1500])
def test_on_triton_programs_may_take_several_rows(
    programs, size, triton_device, poisoned, monkeypatch, fresh_generator, relative_rms
):
    latent, goal = inputs((11, size), torch.bfloat16, fresh_generator)
    given = latent.to(triton_device), goal.to(triton_device)
    alone = latent_cosine(*given)
    monkeypatch.setattr(module, "PROGRAMS", programs)
    assert torch.equal(latent_cosine(*given), alone)
    assert relative_rms(alone, cosine(latent, goal)) < 1e-5


def test_on_triton_long_rows_take_several_blocks_each(
    triton_device, poisoned, monkeypatch, fresh_generator, relative_rms
):
    monkeypatch.setattr(module, "PROGRAMS", 2)
    monkeypatch.setattr(module, "MAX_SPLITS", 2)
    latent, goal = inputs((7, 4100), torch.float32, fresh_generator)
    value = latent_cosine(latent.to(triton_device), goal.to(triton_device))
    assert relative_rms(value, cosine(latent, goal)) < 1e-5


def test_on_triton_takes_latents_that_are_not_contiguous(triton_device, fresh_generator, relative_rms):
    latent, goal = inputs((2, 30, 50), torch.float32, fresh_generator)
    turned = latent.to(triton_device).transpose(1, 2).contiguous().transpose(1, 2)
    assert not turned.is_contiguous()
    assert (
        relative_rms(latent_cosine(turned, goal.to(triton_device)).cpu(), latent_cosine_reference(latent, goal)) < 1e-5
    )


def test_on_triton_zeros_have_no_direction(triton_device, poisoned):
    latent = torch.zeros(2, 1500, device=triton_device)
    latent[1, 3] = -2.0
    goal = torch.zeros(1500, device=triton_device)
    goal[3] = 1.0
    assert latent_cosine(latent, goal).tolist() == [0.0, -1.0]


def test_zeros_have_no_direction_in_the_reference():
    goal = functional.normalize(torch.ones(9), dim=0)
    assert latent_cosine_reference(torch.zeros(2, 3, 3), goal).tolist() == [0.0, 0.0]


def test_nothing_in_gives_nothing_out():
    assert latent_cosine(torch.zeros(0, 4), torch.ones(4) / 2).shape == (0,)


def test_sizes_must_match():
    with pytest.raises(ValueError, match="do not match"):
        latent_cosine(torch.zeros(2, 5), torch.zeros(6))


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_for_every_chip(capability, dtype, compile_launches):
    latent = torch.empty(2, 16, 4, 60, 60, dtype=dtype, device="meta")
    goal = torch.empty(16, 4, 60, 60, device="meta")
    assert compile_launches(lambda: latent_cosine(latent, goal), [module], capability) == ["_finish", "_partial_sums"]
