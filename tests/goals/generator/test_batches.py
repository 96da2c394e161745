import shutil
from collections import Counter

import pytest
import torch

from genreward_fast.errors import UserError
from genreward_fast.goals.finetune.batches import clip_index, draw_example, generator_of, load_batch
from genreward_fast.goals.finetune.config import FinetuneConfig
from genreward_fast.goals.finetune.encoded import CachedClips
from genreward_fast.goals.latent_fill import noisy_first_frames


def test_each_clip_comes_once_an_epoch_in_a_new_order():
    epochs = [[clip_index(number, 20, 5) for number in range(20 * e, 20 * e + 20)] for e in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_draws_do_not_depend_on_how_examples_are_batched(data):
    clips, config = CachedClips(data), FinetuneConfig(seed=3)
    whole = load_batch(clips, range(4, 8), 4, config, 1000, 1)
    for position, number in enumerate(range(4, 8)):
        alone = load_batch(clips, [number], 4, config, 1000, 1)
        for name, value in vars(alone).items():
            assert torch.equal(value[0], getattr(whole, name)[position]), name
    other = load_batch(clips, range(4, 8), 4, FinetuneConfig(seed=4), 1000, 1)
    assert not torch.equal(other.noise, whole.noise)


def test_moments_are_sampled_as_the_autoencoder_does(make_clip, fresh_generator):
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    clip = make_clip(fresh_generator)
    clip.video[16:] = torch.randn(clip.video[16:].shape, generator=fresh_generator) * 20  # beyond the clamped range
    config = FinetuneConfig(image_dropout=0, caption_dropout=0)
    example = draw_example(clip, clip.texts[0], generator_of(0, "x"), config, 1000, 1)
    generator = generator_of(0, "x")
    torch.rand(2, generator=generator)
    for most in (len(clip.texts), len(clip.first_frames), 1000):
        torch.randint(most, (), generator=generator)
    expected = DiagonalGaussianDistribution(clip.video[None]).sample(generator)[0]
    torch.testing.assert_close(example.video, expected)


def test_dropout_and_wordings_come_as_often_as_asked(make_clip, fresh_generator):
    clip = make_clip(fresh_generator, wordings=3)
    config = FinetuneConfig(image_dropout=0.25, caption_dropout=0.4)
    empty = torch.full_like(clip.texts[0], 7.0)
    counts, images, timesteps = Counter(), 0, []
    draws = 600
    for number in range(draws):
        example = draw_example(clip, empty, generator_of(1, number), config, 1000, 1)
        texts = [empty, *clip.texts]
        counts[next(i for i, text in enumerate(texts) if torch.equal(text, example.text))] += 1
        images += int(example.image.abs().max() == 0)
        timesteps.append(int(example.timestep))
    assert counts[0] / draws == pytest.approx(0.4, abs=0.1)
    assert images / draws == pytest.approx(0.25, abs=0.09)
    assert all(counts[wording] / draws == pytest.approx(0.2, abs=0.08) for wording in (1, 2, 3))
    assert 0 <= min(timesteps) < 50
    assert 950 <= max(timesteps) < 1000


def test_clips_of_two_shapes_are_refused(tmp_path, save_clips):
    longer = save_clips(tmp_path / "longer", count=1, frames=5)
    folder = save_clips(tmp_path / "clips", count=3)
    shutil.copy(longer / "clips" / "00000.safetensors", folder / "clips" / "00002.safetensors")
    with pytest.raises(UserError, match="latents of another shape than clip"):
        load_batch(CachedClips(folder), range(3), 3, FinetuneConfig(), 1000, 1)


def test_the_noise_of_first_frames(fresh_generator):
    """log σ is normal with mean -3 and deviation 0.5."""
    frame = torch.full((40, 40, 3), 128, dtype=torch.uint8)
    noisy = noisy_first_frames(frame, 400, fresh_generator)
    logs = (noisy - (128 / 127.5 - 1)).flatten(1).std(1).log()
    assert logs.mean().item() == pytest.approx(-3, abs=0.15)
    assert logs.std().item() == pytest.approx(0.5, abs=0.12)


def test_a_folders_identity_is_its_content(tmp_path, save_clips, data):
    same, other = save_clips(tmp_path / "same"), save_clips(tmp_path / "other", seed=1)
    assert CachedClips(same).identity == CachedClips(data).identity
    assert CachedClips(other).identity != CachedClips(data).identity


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda folder: (folder / "index.json").unlink(), "no finished cache"),
        (lambda folder: (folder / "index.json").write_text("{}"), "is not the index of a cache"),
        (lambda folder: (folder / "captions" / "none.safetensors").write_bytes(b"x"), "none.safetensors: is damaged"),
        (lambda folder: (folder / "clips" / "00001.safetensors").write_bytes(b"x" * 90), "00001.*damaged"),
        (lambda folder: (folder / "clips" / "00001.safetensors").unlink(), "00001.*missing"),
    ],
)
def test_a_broken_folder_is_named(tmp_path, save_clips, break_it, says):
    break_it(save_clips(tmp_path))
    with pytest.raises(UserError, match=says):
        list(CachedClips(tmp_path))
