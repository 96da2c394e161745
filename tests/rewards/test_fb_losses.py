import pytest
import torch

from genreward_fast.rewards.fb_losses import orthonormality_loss, successor_loss
from genreward_fast.rewards.fb_networks import BackwardNet

ONES = torch.ones


def test_two_pairs_by_hand():
    forward = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    backward = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    # M = [[1, 0], [2, 2]]; M̄ = [[1, 1], [1, 0]]; errors off the diagonal: 0 - 0.5 and 2 - 0.5.
    target_forward = torch.tensor([[[1.0, 1.0], [1.0, 0.0]]])
    loss, _ = successor_loss(forward, backward, target_forward, torch.eye(2), ONES(2) * 0.5, "min", ONES(2))
    assert loss.item() == pytest.approx(0.5 * (0.25 + 2.25) / 2 - (1 + 2) / 2)
    # BBᵀ = [[2, 1], [1, 1]].
    assert orthonormality_loss(backward)[0].item() == pytest.approx(1 - 2 * 1.5)


@pytest.mark.parametrize("reduce", ["min", "mean"])
def test_against_loops_in_float64(reduce):
    heads, rows, size = 2, 6, 3
    generator = torch.Generator().manual_seed(1)
    forward, target_forward = torch.randn(2, heads, rows, size, generator=generator, dtype=torch.float64)
    backward, target_backward = torch.randn(2, rows, size, generator=generator, dtype=torch.float64)
    discount = torch.tensor([0.9, 0.9, 0.0, 0.9, 0.0, 0.9], dtype=torch.float64)
    weight = torch.tensor([1, 1, 1, 0, 1, 1], dtype=torch.float64)

    def dot(a, b):
        return sum(float(x) * float(y) for x, y in zip(a, b))

    expected = 0.0
    used = [i for i in range(rows) if weight[i]]
    for k in range(heads):
        off, diagonal = [], []
        for i in used:
            for j in range(rows):
                m = dot(forward[k, i], backward[j])
                targets = [dot(target_forward[h, i], target_backward[j]) for h in range(heads)]
                target = min(targets) if reduce == "min" else sum(targets) / heads
                if i == j:
                    diagonal.append(m)
                else:
                    off.append((m - float(discount[i]) * target) ** 2)
        expected += 0.5 * sum(off) / len(off) - sum(diagonal) / len(diagonal)
    loss, metrics = successor_loss(forward, backward, target_forward, target_backward, discount, reduce, weight)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())

    gram = [[dot(backward[i], backward[j]) for j in range(rows)] for i in range(rows)]
    off = [gram[i][j] ** 2 for i in range(rows) for j in range(rows) if i != j]
    ortho = sum(off) / len(off) - 2 * sum(gram[i][i] for i in range(rows)) / rows
    assert orthonormality_loss(backward)[0].item() == pytest.approx(ortho, rel=1e-12)


def test_no_gradient_reaches_the_target():
    forward, target_forward = torch.randn(2, 2, 4, 3).requires_grad_()
    backward, target_backward = torch.randn(2, 4, 3).requires_grad_()
    loss, _ = successor_loss(forward, backward, target_forward, target_backward, ONES(4) * 0.9, "min", ONES(4))
    gradients = torch.autograd.grad(
        loss, [forward, backward, target_forward, target_backward], allow_unused=True, materialize_grads=True
    )
    assert [bool(gradient.any()) for gradient in gradients] == [True, True, False, False]


def test_one_goal_for_the_whole_batch_teaches_nothing():
    """Why the goal columns are the batch's s′: with one goal image M cannot tell goals apart, nor the losses either."""
    net = BackwardNet(5, 4, 16, torch.Generator().manual_seed(0))
    forward = torch.randn(2, 7, 4)
    states, goal = torch.randn(7, 5), torch.randn(1, 5)

    def measure_and_gradient(shown):
        backward = net(shown)
        gradient = torch.autograd.grad(orthonormality_loss(backward)[0], list(net.parameters()))
        return forward @ backward.T, torch.cat([part.flatten() for part in gradient])

    same, no_gradient = measure_and_gradient(goal.expand(7, -1))
    torch.testing.assert_close(same, same[..., :1].expand_as(same))
    assert no_gradient.abs().max() < 1e-4
    different, gradient = measure_and_gradient(states)
    assert (different[..., :1] - different).abs().max() > 0.1
    assert gradient.abs().max() > 0.1


def test_orthonormality_loss_makes_the_states_orthonormal():
    vectors = torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.Adam([vectors], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        backward = torch.nn.functional.normalize(vectors, dim=-1) * 2
        orthonormality_loss(backward)[0].backward()
        optimizer.step()
    torch.testing.assert_close(backward @ backward.T, 4 * torch.eye(4), atol=0.02, rtol=0)
