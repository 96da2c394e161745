"""How a graph's inputs and results lie in memory; the graphs themselves need a GPU (`test_captured`)."""

import torch

from genreward_fast.captured import Layout


def tensors():
    return (
        torch.randn(3, 5).bfloat16(),
        torch.rand(3) < 0.5,
        torch.randn(()),
        torch.randint(0, 9, (2, 7)),
        torch.randint(0, 255, (3, 4, 4), dtype=torch.uint8),
        torch.randn(4, 8),
    )


def test_what_is_joined_is_found_again():
    given = tensors()
    layout = Layout(given)
    found = layout.views(layout.join((given[0], *given[1:5], given[5].t().contiguous().t())))
    for a, b in zip(given, found):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
        assert b.storage_offset() * b.itemsize % 16 == 0


def test_what_is_carried_has_the_same_layout_as_results_and_as_inputs():
    state = tensors()[:3]
    results, inputs = Layout((*state, torch.zeros(5))), Layout((torch.zeros(2, 2), *state))
    carry = results.head(3)
    buffer = torch.zeros(inputs.size, dtype=torch.uint8)
    buffer[inputs.size - carry :].copy_(results.join((*state, torch.ones(5)))[:carry])
    assert all(torch.equal(a, b) for a, b in zip(state, inputs.views(buffer)[1:]))
    assert results.head(0) == 0
