from __future__ import annotations

import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.goals.frames import to_size, to_square, uniform_indices


def test_uniform_indices() -> None:
    assert uniform_indices(16, 16) == list(range(16))
    assert uniform_indices(49, 16) == [0, 3, 6, 10, 13, 16, 19, 22, 26, 29, 32, 35, 38, 42, 45, 48]
    assert uniform_indices(128, 2) == [0, 127]
    assert uniform_indices(3, 5) == [0, 0, 1, 2, 2]
    assert uniform_indices(7, 1) == [0]


def test_square_is_the_centre() -> None:
    columns = torch.arange(10, dtype=torch.uint8).view(1, 1, 10, 1).expand(2, 4, 10, 3)
    square = to_square(columns, 4)
    assert square.shape == (2, 4, 4, 3)
    assert square[0, 0, :, 0].tolist() == [3, 4, 5, 6]
    assert to_square(columns.transpose(1, 2), 4)[0, :, 0, 0].tolist() == [3, 4, 5, 6]


def test_square_is_resized_with_antialiasing() -> None:
    # One column in eight is white. Averages see it, samples between the two columns in the middle would not.
    stripes = ((torch.arange(64) % 8 == 0) * 255).to(torch.uint8).view(1, 64, 1).expand(64, 64, 3)
    small = to_square(stripes, 8)
    assert small.dtype == torch.uint8
    assert small.shape == (8, 8, 3)
    assert (small[1:-1, 1:-1].int() - 255 // 8).abs().max() <= 3
    assert to_square(stripes, 100).shape == (100, 100, 3)


def test_bad_size() -> None:
    with pytest.raises(UserError, match="frame size 0"):
        to_square(torch.zeros(4, 4, 3, dtype=torch.uint8), 0)


def test_size_keeps_proportions_around_the_centre() -> None:
    rows = torch.arange(12, dtype=torch.uint8).view(12, 1, 1).expand(12, 8, 3)
    assert to_size(rows, 4, 8)[:, 0, 0].tolist() == [4, 5, 6, 7]  # wider than the picture: rows are cut
    assert to_size(rows.transpose(0, 1), 8, 4)[0, :, 0].tolist() == [4, 5, 6, 7]
    assert to_size(rows, 12, 8).equal(rows)
    assert to_size(rows.expand(2, 3, 12, 8, 3), 7, 21).shape == (2, 3, 7, 21, 3)
    # A disc stays one: resized by the same factor both ways.
    y, x = torch.meshgrid(torch.arange(60) - 29.5, torch.arange(100) - 49.5, indexing="ij")
    disc = ((x**2 + y**2 < 20**2) * 255).to(torch.uint8)[..., None].expand(60, 100, 3)
    small = to_size(disc, 30, 30)[..., 0] > 127
    assert abs(small.any(0).sum() - 20) <= 1
    assert abs(small.any(1).sum() - 20) <= 1
    with pytest.raises(UserError, match="frame size 0"):
        to_size(rows, 4, 0)
