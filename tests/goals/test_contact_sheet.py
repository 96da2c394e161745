from __future__ import annotations

import numpy as np
import pytest
import torch

from genreward_fast.goals.contact_sheet import contact_sheet

ORANGE = (214, 84, 16)


def greys(count: int) -> torch.Tensor:
    return torch.arange(count).mul(2).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 20, 40, 3).contiguous()


def shown(image: np.ndarray, tile: tuple[int, int] = (240, 120), top: int = 14, gap: int = 14) -> list[int]:
    """The frame that each cell shows, told by its grey; -1 where there is none."""
    width, height = tile[0] + gap, tile[1] + 34 + gap
    rows, columns = (image.shape[0] - top) // height, (image.shape[1] - gap) // width
    centres = [(top + r * height + 60, gap + c * width + 120) for r in range(rows) for c in range(columns)]
    return [int(image[y, x, 0]) // 2 if image[y, x, 0] < 245 else -1 for y, x in centres]


def orange(image: np.ndarray) -> tuple[int, int, int, int]:
    ys, xs = np.nonzero((image == ORANGE).all(-1))
    return ys.min(), ys.max(), xs.min(), xs.max()


def test_all_frames_in_order_and_the_chosen_one_framed() -> None:
    image = np.asarray(contact_sheet(greys(8), 6))
    assert shown(image) == [0, 1, 2, 3, 4, 5, 6, 7, -1, -1]
    top, bottom, left, right = orange(image)
    # Second row, second column.
    assert (top, left) == (14 + 168 - 5, 14 + 254 - 5)
    assert bottom > top + 120
    assert right == left + 249


@pytest.mark.parametrize("selected", [0, 29, 96])
def test_49_of_many_and_the_chosen_one_among_them(selected: int) -> None:
    frames = shown(np.asarray(contact_sheet(greys(97), selected, columns=5)))
    frames = [frame for frame in frames if frame >= 0]
    assert len(frames) == 49
    assert frames == sorted(set(frames))
    assert selected in frames
    assert {0, 96} <= set(frames)


def test_all_frames_of_a_generated_video() -> None:
    frames = shown(np.asarray(contact_sheet(greys(49), 48, columns=5)))
    assert [frame for frame in frames if frame >= 0] == list(range(49))


def test_scores_change_the_labels_and_bars() -> None:
    plain = np.asarray(contact_sheet(greys(4), 0))
    scored = np.asarray(contact_sheet(greys(4), 0, torch.tensor([0.1, 0.2, 0.3, 0.25])))
    assert plain.shape == scored.shape

    def bar(index: int) -> int:
        row = scored[14 + 120 + 27, 14 + 254 * index : 14 + 254 * index + 240]
        return int((row == (96, 140, 196)).all(-1).sum())

    assert [bar(1), bar(2), bar(3)] == [120, 240, 180]
    contact_sheet(greys(4), 0, torch.full((4,), 0.5))  # equal scores are no division by zero


def test_title_and_note_take_their_place() -> None:
    frames = greys(5)
    titles = (("", ""), ("a", ""), ("a", "b"))
    heights = [contact_sheet(frames, 1, title=title, note=note).height for title, note in titles]
    assert heights == sorted(set(heights))
    long = contact_sheet(frames, 1, title="pick up the ball " * 40)
    assert long.size == contact_sheet(frames, 1, title="a").size
    margin = np.asarray(long)[: 14 + 30, -12:]
    assert (margin == 250).all()
