"""What training gives to the transformer is what diffusers' pipeline gives to it."""

import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline
from PIL import Image

from genreward_fast.errors import UserError
from genreward_fast.goals.finetune.conditioning import Conditioning

V1 = {}
V1_LEARNED = {"use_learned_positional_embeddings": True}
V1_5 = {"patch_size_t": 2, "ofs_embed_dim": 16, "sample_height": 6, "sample_width": 8}


class Stop(Exception):
    pass


def first_inputs(pipeline, **arguments):
    """The transformer's arguments in the pipeline's first step."""
    seen = {}

    def keep(_module, _args, kwargs):
        seen.update(kwargs)
        raise Stop

    handle = pipeline.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    with pytest.raises(Stop):
        pipeline(**arguments)
    handle.remove()
    return seen


@pytest.mark.parametrize("dpm", [False, True])
@pytest.mark.parametrize(
    ("changes", "vae", "frames", "height", "width"),
    [
        (V1, {}, 9, 32, 32),
        (V1, {}, 5, 48, 80),  # another size than the model's: the rotary grid is cropped
        (V1_LEARNED, {}, 9, 32, 32),
        (V1_5, {"invert_scale_latents": True}, 9, 32, 48),  # 3 latent frames, one is added
        (V1_5, {}, 5, 32, 32),
    ],
)
def test_inputs_are_the_pipelines(tmp_path, save_model, fresh_generator, changes, vae, frames, height, width, dpm):
    folder = save_model(tmp_path, dpm=dpm, vae=vae, **changes)
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    conditioning = Conditioning(pipeline.transformer.config, pipeline.vae.config)
    steps = 7
    pipeline.scheduler.set_timesteps(steps)
    # A step in the middle of the schedule becomes the pipeline's first one.
    timestep = pipeline.scheduler.timesteps[3].clone()
    video = torch.randn(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8, generator=fresh_generator)
    latents = conditioning.video_latents(video)
    noise = torch.randn(latents.shape, generator=fresh_generator)
    noisy = pipeline.scheduler.add_noise(latents, noise, timestep[None])
    text = torch.randn(1, 12, 24, generator=fresh_generator)
    image = torch.randint(0, 256, (height, width, 3), generator=fresh_generator, dtype=torch.uint8)

    pixels = pipeline.video_processor.preprocess(Image.fromarray(image.numpy()), height=height, width=width)
    with torch.no_grad():
        encoded = pipeline.vae.encode(pixels[:, :, None]).latent_dist.sample(torch.Generator().manual_seed(3))
    set_timesteps = pipeline.scheduler.set_timesteps

    def from_the_middle(*args, **kwargs):
        set_timesteps(*args, **kwargs)
        pipeline.scheduler.timesteps = pipeline.scheduler.timesteps[3:]

    pipeline.scheduler.set_timesteps = from_the_middle
    theirs = first_inputs(
        pipeline,
        image=Image.fromarray(image.numpy()),
        prompt_embeds=text,
        height=height,
        width=width,
        num_frames=frames,
        num_inference_steps=steps,
        guidance_scale=1.0,
        latents=noisy,
        generator=torch.Generator().manual_seed(3),
    )
    ours = conditioning.model_inputs(
        noisy, conditioning.image_latents(encoded[:, :, 0], latents.shape[1]), text, timestep[None], torch.float32
    )
    assert set(theirs) - {"attention_kwargs"} == set(ours)
    torch.testing.assert_close(ours["hidden_states"], theirs["hidden_states"], rtol=0, atol=0)
    torch.testing.assert_close(ours["encoder_hidden_states"], theirs["encoder_hidden_states"], rtol=0, atol=0)
    torch.testing.assert_close(ours["timestep"], theirs["timestep"], rtol=0, atol=0)
    torch.testing.assert_close(ours["image_rotary_emb"], theirs["image_rotary_emb"], rtol=0, atol=0)
    if "ofs_embed_dim" in changes:
        torch.testing.assert_close(ours["ofs"], theirs["ofs"], rtol=0, atol=0)
    else:
        assert ours["ofs"] is None
        assert theirs["ofs"] is None
    assert pipeline.transformer(**ours)[0].shape == latents.shape


def test_latents_are_what_the_pipeline_decodes(model, fresh_generator):
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(model)
    conditioning = Conditioning(pipeline.transformer.config, pipeline.vae.config)
    video = torch.randn(1, 16, 2, 4, 4, generator=fresh_generator)
    with torch.no_grad():
        decoded = pipeline.decode_latents(conditioning.video_latents(video))
        plain = pipeline.vae.decode(video).sample
    torch.testing.assert_close(decoded, plain, rtol=1e-4, atol=1e-5)


def test_the_frame_in_front_is_a_copy_of_the_first(tmp_path, save_model):
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(save_model(tmp_path, **V1_5))
    conditioning = Conditioning(pipeline.transformer.config, pipeline.vae.config)
    video = torch.arange(3.0).view(1, 1, 3, 1, 1).expand(1, 16, 3, 4, 4)
    frames = conditioning.video_latents(video)[0, :, 0, 0, 0] / 0.7
    torch.testing.assert_close(frames, torch.tensor([0.0, 0.0, 1.0, 2.0]))


def test_clips_that_do_not_fit_are_refused(tmp_path, save_model):
    pipeline = CogVideoXImageToVideoPipeline.from_pretrained(save_model(tmp_path, **V1_LEARNED))
    conditioning = Conditioning(pipeline.transformer.config, pipeline.vae.config)
    text = torch.zeros(12, 24)
    conditioning.check(torch.zeros(32, 3, 4, 4), text)
    with pytest.raises(UserError, match="do not fit this model"):
        conditioning.check(torch.zeros(30, 3, 4, 4), text)
    with pytest.raises(UserError, match="do not fit this model"):
        conditioning.check(torch.zeros(32, 3, 5, 4), text)
    with pytest.raises(UserError, match="texts are"):
        conditioning.check(torch.zeros(32, 3, 4, 4), torch.zeros(13, 24))
    with pytest.raises(UserError, match="knows 4x4 only"):
        conditioning.check(torch.zeros(32, 3, 6, 4), text)
