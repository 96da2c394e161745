"""Which rows of a window are paid, and how a value is shared among them."""

from __future__ import annotations

import torch
from torch import Tensor

from genreward_fast.rewards.config import Credit
from genreward_fast.types import Window


def paid_rows(window: Window, credit: Credit, device: torch.device) -> Tensor:
    """(T,) float32: 1 for the rows that are paid, the last ("closing") or the fresh ones ("spread"); 0 for others."""
    paid = torch.zeros(window.shape[1], device=device)
    paid[-(1 if credit == "closing" else window.fresh) :] = 1
    return paid


def share_value(value: Tensor, window: Window, credit: Credit) -> Tensor:
    """One value a window, (B,), on its last row or divided equally among its fresh rows; (B, T), each sums to it."""
    paid = paid_rows(window, credit, value.device)
    return value.unsqueeze(-1) * (paid / paid.sum())


def share_rows(values: Tensor, window: Window, credit: Credit) -> Tensor:
    """A value of each row, (B, T): the fresh rows keep theirs ("spread"), or the last row gets their sum ("closing").

    Rows that an earlier window has paid get nothing.
    """
    fresh = values.clone()
    fresh[:, : values.shape[1] - window.fresh] = 0
    if credit == "spread":
        return fresh
    return share_value(fresh.sum(dim=1), window, credit)
