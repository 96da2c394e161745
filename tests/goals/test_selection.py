from __future__ import annotations

import pytest
import torch

from genreward_fast.encoders.clip import TextImageEncoder
from genreward_fast.errors import UserError
from genreward_fast.goals.selection import TEMPLATES, embed_text, select_frame


class ColourEncoder:
    """Three dimensions: an image is its mean colour, a sentence the colour it names, and half blue for its length."""

    def encode_images(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(frames.float().mean((1, 2)), dim=-1)

    def encode_text(self, texts: list[str]) -> torch.Tensor:
        colours = [[float("red" in text), float("green" in text), 0.5 * (len(text) > 10)] for text in texts]
        return torch.nn.functional.normalize(torch.tensor(colours), dim=-1)


def coloured(*colours: tuple[int, int, int]) -> torch.Tensor:
    return torch.tensor(colours, dtype=torch.uint8).view(-1, 1, 1, 3).expand(-1, 8, 12, 3).contiguous()


def test_picks_the_frame_that_the_text_names() -> None:
    video = coloured((0, 0, 200), (0, 90, 0), (200, 10, 10), (200, 0, 0), (90, 90, 0))
    selection = select_frame(video, "red", ColourEncoder(), templates=["{}"])  # type: ignore[arg-type]
    assert (selection.index, selection.method) == (3, "clip")
    assert selection.scores is not None
    assert selection.scores.shape == (5,)
    torch.testing.assert_close(selection.scores[[0, 1, 3, 4]], torch.tensor([0.0, 0.0, 1.0, 0.5**0.5]))
    # Sorted: 0, 0, 0.707, 0.998, 1.
    assert selection.margin == pytest.approx(1 - 0.5**0.5, abs=1e-6)
    # Red, not blue: the channels are read in the order in which the video holds them.
    bgr = select_frame(video.flip(-1), "red", ColourEncoder(), templates=["{}"])  # type: ignore[arg-type]
    assert bgr.index == 0


def test_every_frame_is_scored_and_the_last_can_win() -> None:
    video = coloured(*[(0, 100, 0)] * 8, (200, 0, 0))
    assert select_frame(video, "red", ColourEncoder()).index == 8  # type: ignore[arg-type]
    assert select_frame(video.flip(0), "red", ColourEncoder()).index == 0  # type: ignore[arg-type]


def test_templates_are_normalised_averaged_normalised() -> None:
    embedding = embed_text("red", ColourEncoder(), ["{}", "a long sentence: {}"])  # type: ignore[arg-type]
    long = torch.tensor([1.0, 0.0, 0.5]) / 1.25**0.5
    mean = (torch.tensor([1.0, 0.0, 0.0]) + long) / 2
    torch.testing.assert_close(embedding, mean / mean.norm())


def test_with_a_real_encoder(encoder: TextImageEncoder, video: torch.Tensor) -> None:
    selection = select_frame(video, "pick up the ball", encoder)
    assert selection.scores is not None
    assert selection.frame_embeddings is not None
    assert selection.text_embedding is not None
    torch.testing.assert_close(selection.frame_embeddings.norm(dim=-1), torch.ones(10))
    torch.testing.assert_close(selection.text_embedding.norm(), torch.tensor(1.0))
    texts = encoder.encode_text([template.format("pick up the ball") for template in TEMPLATES]).mean(0)
    torch.testing.assert_close(selection.scores, encoder.encode_images(video) @ (texts / texts.norm()))
    assert selection.index == int(selection.scores.argmax())
    other = select_frame(video, "open the drawer", encoder)
    assert not torch.equal(selection.scores, other.scores)


def test_the_other_methods(video: torch.Tensor, encoder: TextImageEncoder) -> None:
    assert select_frame(video, "x", None, "last").index == 9
    assert select_frame(video, "x", None, 3).index == 3
    assert select_frame(video, "x", None, "3").index == 3
    assert select_frame(video, "x", None, -2).index == 8
    assert select_frame(video, "x", None, "last").scores is None
    scored = select_frame(video, "x", encoder, "last")
    assert scored.index == 9
    assert scored.scores is not None
    assert scored.margin == pytest.approx(float(scored.scores[9] - scored.scores.median()))


@pytest.mark.parametrize(
    ("select", "match"),
    [(10, "frames 0 to 9"), (-11, "frames 0 to 9"), ("best", "select 'best'"), ("clip", "needs the text and image")],
)
def test_bad_methods(video: torch.Tensor, select: str | int, match: str) -> None:
    with pytest.raises(UserError, match=match):
        select_frame(video, "x", None, select)


def test_bad_texts(video: torch.Tensor, encoder: TextImageEncoder) -> None:
    with pytest.raises(UserError, match="text: is empty"):
        select_frame(video, "  ", encoder)
    for templates in ([], ["no place for it"], ["{} and {}"]):
        with pytest.raises(UserError, match="prompt templates"):
            select_frame(video, "x", encoder, templates=templates)
    # A text with braces is a text like any other.
    assert 0 <= select_frame(video, "pick up {this} {0}", encoder).index < 10
