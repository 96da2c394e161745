"""The self-supervised losses against plain loops."""

import math
from copy import deepcopy

import torch
from torch import nn

from genreward_fast.goals.assets.dino_loss import STUDENT_TEMPERATURE, Prototypes, dino_loss, koleo_loss, sinkhorn


def test_assignments_are_balanced():
    weights = sinkhorn(torch.randn(64, 8), temperature=0.5, iterations=50)
    torch.testing.assert_close(weights.sum(1), torch.ones(64))
    torch.testing.assert_close(weights.sum(0), torch.full((8,), 8.0), rtol=1e-2, atol=0)


def test_dino_compares_each_view_with_the_others():
    student = torch.randn(4, 6, 5)
    teacher = torch.randn(2, 6, 5).softmax(-1)
    terms = [
        -(teacher[g, n] * (student[v, n] / STUDENT_TEMPERATURE).log_softmax(-1)).sum()
        for g in range(2)
        for v in range(4)
        if g != v
        for n in range(6)
    ]
    torch.testing.assert_close(dino_loss(student, teacher), torch.stack(terms).mean())


def test_koleo_falls_when_directions_spread():
    together = torch.nn.functional.normalize(torch.tensor([[1.0, 0.01 * i] for i in range(8)]), dim=-1)
    angles = torch.arange(8) * (torch.pi / 4)
    spread = torch.stack([angles.cos(), angles.sin()], 1)
    assert koleo_loss(spread) < koleo_loss(together)
    nearest = (2 - 2 * torch.cos(torch.tensor(torch.pi / 4))).sqrt()
    torch.testing.assert_close(koleo_loss(spread), -nearest.log(), rtol=1e-4, atol=0)


def test_assignments_tell_tokens_apart_that_have_nearly_everything_in_common():
    tokens = torch.randn(32) + 0.01 * torch.randn(256, 32)
    targets = sinkhorn(Prototypes(32, prototypes=64)(tokens))
    entropy = -(targets * targets.clamp_min(1e-30).log()).sum(1).mean()
    assert entropy < 0.8 * torch.tensor(64.0).log()


def test_a_student_learns_the_assignments_of_views_that_look_alike():
    """From a start where all tokens are nearly one, the loss falls below that of uniform assignments."""
    prototypes = 64
    student = nn.Sequential(nn.Linear(32, 32), Prototypes(32, prototypes))
    teacher = deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in student.parameters() if p.requires_grad], lr=3e-3)
    common, losses = torch.randn(32), []
    for _ in range(150):
        thing = torch.randn(128, 32)
        views = [common + 0.1 * (thing + 0.3 * torch.randn(128, 32)) for _ in range(2)]
        targets = torch.stack([sinkhorn(teacher(view)) for view in views])
        scores = student(torch.cat(views)).unflatten(0, (2, -1))
        loss = dino_loss(scores, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 0.01)
        losses.append(float(loss.detach()))
    assert sum(losses[-20:]) / 20 < 0.75 * math.log(prototypes)
