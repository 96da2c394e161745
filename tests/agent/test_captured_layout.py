"""How a graph's inputs and results lie in memory; the graphs themselves need a GPU (`test_captured`)."""

import torch

from genreward_fast.agent.captured import Layout


def tensors():
    return (
        torch.randn(3, 5).bfloat16(),
        torch.rand(3) < 0.5,
        torch.randn(()),
        torch.randint(0, 9, (2, 7)),
        torch.randint(0, 255, (3, 4, 4), dtype=torch.uint8),
        torch.randn(4, 8),
    )


def filled(layout):
    buffer = torch.full((layout.size,), 77, dtype=torch.uint8)
    return buffer, layout.views(buffer)


def test_what_is_joined_is_found_again():
    given = tensors()
    layout = Layout(given)
    found = layout.views(layout.join((given[0], *given[1:5], given[5].t().contiguous().t())))
    for a, b in zip(given, found):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
        assert b.storage_offset() * b.itemsize % 16 == 0


def test_filling_copies_each():
    given = tensors()
    layout = Layout(given)
    buffer, views = filled(layout)
    layout.fill(buffer, views, (given[0], *given[1:5], given[5].t().contiguous().t()))
    assert all(torch.equal(a, b) for a, b in zip(given, views))


def test_results_come_back_in_one_copy(monkeypatch):
    state = tensors()[:3]
    results = Layout((*state, torch.zeros(5)))
    returned = results.views(results.join((*state, torch.ones(5))))
    inputs = (torch.randn(2, 2), *returned[:3])
    layout = Layout(inputs)
    buffer, views = filled(layout)
    with torch.profiler.profile() as profile:
        layout.fill(buffer, views, inputs)
    assert sum(event.name == "aten::copy_" for event in profile.events()) == 2
    assert all(torch.equal(a, b) for a, b in zip(inputs, views))
    # In another order, or from another buffer, they are copied one by one.
    mixed = (inputs[0], returned[0], returned[1].clone(), returned[2])
    layout.fill(buffer, views, mixed)
    assert all(torch.equal(a, b) for a, b in zip(mixed, views))
    layout.fill(buffer, views, views)
    assert all(torch.equal(a, b) for a, b in zip(mixed, views))
