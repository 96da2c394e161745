"""The video level: a cosine of latents, as they are or without what stands still in them."""

import pytest
import torch
from torch.nn import functional

from genreward_fast.errors import UserError
from genreward_fast.rewards.video import VideoReward


class Pixels(torch.nn.Module):
    """Frames as their own latents: (B, K, H, W, 3) to (B, 3, K, H, W)."""

    def forward(self, frames):
        return frames.movedim(-1, 1).float() / 255


@pytest.fixture
def clips(fresh_generator):
    return torch.randint(0, 256, (4, 6, 5, 5, 3), generator=fresh_generator, dtype=torch.uint8)


def test_it_is_the_cosine_of_latents(clips):
    latents = Pixels()(clips).flatten(1)
    expected = functional.cosine_similarity(latents, latents[:1])
    torch.testing.assert_close(VideoReward(Pixels(), clips[0]).score(clips), expected)
    centred = (Pixels()(clips) - Pixels()(clips).mean(2, keepdim=True)).flatten(1)
    expected = functional.cosine_similarity(centred, centred[:1])
    torch.testing.assert_close(VideoReward(Pixels(), clips[0], centred=True).score(clips), expected)


def test_centred_it_does_not_see_what_stands_still(clips, fresh_generator):
    scene = torch.randint(0, 100, (1, 1, 5, 5, 3), generator=fresh_generator, dtype=torch.uint8)
    moving = clips // 2
    goal, other = moving[0], moving[1:] + scene
    plain, centred = (VideoReward(Pixels(), goal, centred=way) for way in (False, True))
    torch.testing.assert_close(centred.score(other), centred.score(moving[1:]), atol=1e-5, rtol=0)
    assert ((plain.score(other) - plain.score(moving[1:])).abs() > 1e-3).all()
    still = moving[:, :1].expand(-1, 6, -1, -1, -1)
    assert centred.score(still).abs().max() < 1e-3  # nothing moves: nothing is alike, and nothing is NaN


def test_centred_needs_more_than_one_latent_frame(clips):
    with pytest.raises(UserError, match="--video-centred"):
        VideoReward(Pixels(), clips[0, :1], centred=True)
