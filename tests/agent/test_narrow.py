"""What a CPU does its own way, against autograd of the plain form in float64."""

import pytest
import torch
from torch.nn import functional

from genreward_fast.agent.convs import max_pool
from genreward_fast.agent.narrow import image_error, norm_silu


def close(found, expected, limit=1e-5):
    for a, b in zip(found, expected):
        assert a.dtype == torch.float32
        assert a.shape == b.shape
        assert float((a.double() - b).norm() / b.norm()) <= limit


@pytest.mark.parametrize("shape", [(7, 5, 12), (256, 8), (3, 4, 4, 16), (1, 5), (2, 3, 64)])
def test_norm_silu(shape):
    generator = torch.Generator().manual_seed(len(shape))
    x, scale, weight = (torch.randn(s, generator=generator, dtype=torch.float64) for s in (shape, shape[-1:], shape))
    scale = 1 + 0.3 * scale
    inputs = [v.requires_grad_() for v in (x, scale)]
    expected = functional.silu(functional.rms_norm(x, shape[-1:], scale, 1e-4))
    gradients = torch.autograd.grad(expected, inputs, weight)
    inputs = [v.detach().float().requires_grad_() for v in inputs]
    found = norm_silu(*inputs, 1e-4)
    close([found.detach()], [expected.detach()])
    close(torch.autograd.grad(found, inputs, weight.float()), gradients)


def test_norm_silu_of_strided_memory():
    x = torch.randn(2, 8, 6, 4)
    expected = norm_silu(x.permute(0, 2, 3, 1).contiguous(), torch.ones(8), 1e-4)
    assert torch.equal(norm_silu(x.permute(0, 2, 3, 1), torch.ones(8), 1e-4), expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_image_error(channels_last):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 12, 4, 6, generator=generator, dtype=torch.float64).requires_grad_()
    image = torch.randint(0, 256, (3, 1, 8, 12, 3), generator=generator, dtype=torch.uint8)
    weight = torch.randn(3, generator=generator, dtype=torch.float64)
    blocks = x.unflatten(1, (4, 3)).transpose(1, 2).flatten(1, 2)  # what `pixel_shuffle` wants
    pixels = functional.pixel_shuffle(blocks, 2).sigmoid().permute(0, 2, 3, 1)
    expected = (pixels - image[:, 0].double() / 255).square().sum((1, 2, 3))
    gradients = torch.autograd.grad(expected, [x], weight)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    single = x.detach().float().contiguous(memory_format=memory).requires_grad_()
    found = image_error(single, image)
    close([found.detach()], [expected.detach()])
    close(torch.autograd.grad(found, [single], weight.float()), gradients)


def test_max_pool_in_parts():
    """More values than one part holds; few of them differ, so that many pixels tie."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (70, 8, 32, 32), generator=generator).float()
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(70, 8, 16, 16, generator=generator)
    found = torch.autograd.grad(max_pool(x), [x], weight)
    blocks = x.unflatten(3, (16, 2)).unflatten(2, (16, 2)).amax((3, 5))  # its gradient is split among ties, too
    assert torch.allclose(found[0], torch.autograd.grad(blocks, [x], weight)[0], rtol=1e-6)
