"""FB's update as the code published with GenReward computes it, re-created from its description to be timed.

Networks, shapes and optimiser are ours; what differs is how it is computed: all pairs of rows as matrices from which a
mask picks, Adam and targets tensor by tensor, and a wait for the device after each of 12 numbers.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from genreward_fast.rewards.config import FBConfig
from genreward_fast.rewards.fb_networks import scaled_to_sphere
from genreward_fast.types import Batch


def released_losses(
    forward: Tensor, backward: Tensor, target_forward: Tensor, target_backward: Tensor, discount: Tensor
) -> dict[str, Tensor]:
    """The four terms of the losses of Touati & Ollivier (2021), the target being the heads' mean.

    Args:
        forward, target_forward: (K, n, d).
        backward, target_backward: (n, d).
        discount: (n,).

    Returns:
        0-d "off_diagonal", "diagonal", "ortho_off_diagonal" and "ortho_diagonal", whose sum (with the last two times
        their weight) is the loss; and "measure" and "target", means over all pairs.
    """
    measures = [torch.einsum("sd,td->st", head, backward) for head in forward]
    target = torch.stack([torch.einsum("sd,td->st", head, target_backward) for head in target_forward]).mean(0)
    off = ~torch.eye(len(backward), dtype=torch.bool, device=backward.device)
    errors = [(measure - discount.unsqueeze(-1) * target)[off].square().mean() for measure in measures]
    covariance = backward @ backward.T
    return {
        "off_diagonal": 0.5 * torch.stack(errors).sum(),
        "diagonal": -torch.stack([measure.diag().mean() for measure in measures]).sum(),
        "ortho_off_diagonal": covariance[off].square().mean(),
        "ortho_diagonal": -2 * covariance.diag().mean(),
        "measure": torch.stack(measures).mean().detach(),
        "target": target.mean(),
    }


class ReleasedUpdate:
    """Learns as `ForwardBackward` does with next actions from the replay.

    Args:
        forward_net, backward_net: F and B; copied.
        config: the hyperparameters.
    """

    def __init__(self, forward_net: nn.Module, backward_net: nn.Module, config: FBConfig):
        self.config = config
        self.forward_net, self.backward_net = copy.deepcopy(forward_net), copy.deepcopy(backward_net)
        self.forward_target = copy.deepcopy(forward_net).requires_grad_(False)
        self.backward_target = copy.deepcopy(backward_net).requires_grad_(False)
        parameters = [*self.forward_net.parameters(), *self.backward_net.parameters()]
        self._optimizer = torch.optim.Adam(parameters, lr=config.lr, foreach=False)

    def update(self, batch: Batch) -> dict[str, float]:
        """One step on pairs of consecutive rows of one episode (T = 2); the 12 numbers, each read back by itself."""
        assert batch.feature is not None
        feature, next_feature = batch.feature.unbind(1)
        action, next_action = batch.action.unbind(1)
        discount = self.config.gamma * (~batch.is_terminal[:, 1]).float()
        with torch.no_grad():
            z = self._goal_vectors(next_feature)
            target_forward = self.forward_target(next_feature, next_action, z)
            target_backward = self.backward_target(next_feature)
        forward, backward = self.forward_net(feature, action, z), self.backward_net(next_feature)
        terms = released_losses(forward, backward, target_forward, target_backward, discount)
        measure_loss = terms["off_diagonal"] + terms["diagonal"]
        ortho_loss = terms["ortho_off_diagonal"] + terms["ortho_diagonal"]
        loss = measure_loss + self.config.ortho * ortho_loss
        norms = {"f_norm": forward.norm(dim=-1), "b_norm": backward.norm(dim=-1), "z_norm": z.norm(dim=-1)}
        named = {"loss": loss, "measure_loss": measure_loss, "ortho_loss": ortho_loss} | terms | norms
        numbers = {name: value.detach().mean().item() for name, value in named.items()}
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self._follow(self.forward_net, self.forward_target)
        self._follow(self.backward_net, self.backward_target)
        return numbers

    def _goal_vectors(self, frames: Tensor) -> Tensor:
        rows = len(frames)
        z = scaled_to_sphere(torch.randn(rows, self.config.z_dim, device=frames.device))
        shown = torch.rand(rows, device=frames.device) < self.config.mix
        z[shown] = self.backward_net(frames[torch.randperm(rows, device=frames.device)][shown])
        return z

    def _follow(self, net: nn.Module, target: nn.Module) -> None:
        for online, slow in zip(net.parameters(), target.parameters()):
            slow.data.copy_(self.config.tau * online.data + (1 - self.config.tau) * slow.data)
