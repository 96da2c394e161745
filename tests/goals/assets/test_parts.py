"""Each part learns, goes on where it stopped, and is loaded as the preset loads it."""

from dataclasses import replace

import pytest
import torch

from genreward_fast.encoders.clip_weights import read_clip
from genreward_fast.encoders.image import read_dino
from genreward_fast.encoders.video import read_vae
from genreward_fast.errors import RunFailed, UserError
from genreward_fast.goals.assets import clip, dino, vae
from genreward_fast.goals.assets.build import build
from genreward_fast.goals.assets.loop import LoopConfig, generator_for, train
from genreward_fast.goals.assets.plan import HELD_OUT_TASKS, MAX_BYTES, BuildFolder
from genreward_fast.goals.assets.recordings import read_recordings
from genreward_fast.goals.assets.saving import sizes

CPU = torch.device("cpu")


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3, 1))


def train_line(checkpoint, config, *, resume=False, stop_after=None):
    """Fits y = x·(1, 2, 3); raises KeyboardInterrupt in place of an update, if asked to."""
    model = Line()

    def losses(generator, _done):
        if stop_after is not None and stop_after.pop() == 0:
            raise KeyboardInterrupt
        x = torch.randn(16, 3, generator=generator)
        error = x @ model.weight - x @ torch.tensor([[1.0], [2.0], [3.0]])
        return {"loss": error.square().mean()}

    return model, train("line", model, losses, config, checkpoint, device=CPU, resume=resume)


def test_the_loop_minimises_and_ends_at_its_steps(tmp_path):
    model, trained = train_line(tmp_path / "line.pt", LoopConfig(300, lr=0.1, warmup=10))
    assert trained.steps == 300
    torch.testing.assert_close(model.weight.detach()[:, 0], torch.tensor([1.0, 2.0, 3.0]), atol=0.05, rtol=0)


def test_the_loop_ends_when_its_time_is_over(tmp_path):
    _, trained = train_line(tmp_path / "line.pt", LoopConfig(10**9, seconds=0.5))
    assert 0 < trained.steps < 10**9
    assert trained.seconds < 10


def test_a_resumed_loop_computes_what_a_whole_one_does(tmp_path, monkeypatch):
    config = LoopConfig(40, lr=0.1, warmup=10)
    whole, _ = train_line(tmp_path / "whole.pt", config)
    monkeypatch.setattr("genreward_fast.goals.assets.loop._SAVE_EVERY", 0.0)  # after every step
    with pytest.raises(KeyboardInterrupt):
        train_line(tmp_path / "cut.pt", config, stop_after=[0, *[1] * 17])
    resumed, trained = train_line(tmp_path / "cut.pt", config, resume=True)
    assert trained.steps == 40
    assert torch.equal(resumed.weight, whole.weight)


def test_another_configuration_or_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "line.pt"
    train_line(path, LoopConfig(2))
    with pytest.raises(UserError, match="another version or configuration"):
        train_line(path, LoopConfig(2, lr=0.5), resume=True)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"line\.pt: damaged"):
        train_line(path, LoopConfig(2), resume=True)


@pytest.mark.parametrize("part", ["vae", "dino", "clip"])
def test_a_part_is_built_and_goes_on(part, toy):
    folder, config = toy
    if part == "vae":  # more pixels take a CPU long
        config = replace(config, sizes=(16,))
    built = dict(recording=config, steps=3, batch=1 if part == "vae" else 2)
    said = []
    build(folder.root, [part], CPU, **built, say=said.append)
    assert any(line.startswith(f"{part}: 3 steps") for line in said)
    loaded = {"vae": read_vae, "dino": read_dino, "clip": lambda path: read_clip(path, "ViT-B-32")[0]}[part]
    weights = loaded(str(folder.weights(part))).state_dict()
    assert all(
        torch.equal(value, value.half().to(value.dtype)) for value in weights.values() if value.is_floating_point()
    )
    assert "Limits" in (folder.weights(part) / "README.md").read_text()
    assert folder.measured(part).is_file()
    with pytest.raises(UserError, match="there already"):
        build(folder.root, [part], CPU, **built)
    build(folder.root, [part], CPU, **built, resume=True)  # complete: not trained on
    again = loaded(str(folder.weights(part))).state_dict()
    assert all(torch.equal(again[name], value) for name, value in weights.items())


PARTS = pytest.mark.parametrize(
    ("train_part", "sizes", "loss"),
    [(vae.train_vae, (16,), "pixels"), (dino.train_dino, (32, 64), "picture"), (clip.train_clip, (32,), "loss")],
    ids=["vae", "dino", "clip"],
)


@PARTS
def test_a_part_that_was_cut_ends_with_the_losses_of_a_whole_one(train_part, sizes, loss, toy, tmp_path, monkeypatch):
    folder, config = toy
    shown = read_recordings(folder, config.tasks, sizes, CPU)
    whole, cut = BuildFolder(tmp_path / "whole"), BuildFolder(tmp_path / "cut")
    loop = LoopConfig(4, lr=2e-3, warmup=1)
    expected = train_part(shown, whole, loop, batch=2).losses
    monkeypatch.setattr("genreward_fast.goals.assets.loop._SAVE_EVERY", 0.0)

    def cutting(seed, step, device):
        if step == 2:
            raise KeyboardInterrupt
        return generator_for(seed, step, device)

    with monkeypatch.context() as patch:
        patch.setattr("genreward_fast.goals.assets.loop.generator_for", cutting)
        with pytest.raises(KeyboardInterrupt):
            train_part(shown, cut, loop, batch=2)
    resumed = train_part(shown, cut, loop, batch=2, resume=True)
    assert resumed.steps == 4
    assert resumed.losses == pytest.approx(expected, rel=1e-6)


@PARTS
def test_what_a_part_minimises_falls(train_part, sizes, loss, toy, tmp_path):
    folder, config = toy
    shown = read_recordings(folder, config.tasks, sizes, CPU)
    last = [
        train_part(shown, BuildFolder(tmp_path / str(steps)), LoopConfig(steps, lr=2e-3, warmup=1), batch=4).losses[
            loss
        ]
        for steps in (1, 16)
    ]
    assert last[1] < 0.8 * last[0]


def test_missing_and_damaged_recordings_are_named(toy):
    folder, config = toy
    with pytest.raises(UserError, match=r"hammer\.safetensors: no such recording"):
        read_recordings(folder, ("hammer",), (64,), CPU)
    path = folder.recording(config.tasks[0])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        read_recordings(folder, config.tasks, (64,), CPU)


def test_unknown_parts_and_minutes_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such part"):
        build(tmp_path, ["wings"], CPU)
    with pytest.raises(UserError, match="must be positive"):
        build(tmp_path, ["vae"], CPU, minutes=0)


def test_what_the_presets_configurations_weigh():
    from genreward_fast.encoders.architectures import build_clip, build_dino, build_vae

    models = (build_vae("tiny", 0), build_dino("tiny", 0), build_clip("tiny", 0)[0])
    encoders = 2 * sum(value.numel() for model in models for value in model.state_dict().values())
    assert encoders < 0.75 * MAX_BYTES  # the rest is the generator's


def test_weights_that_are_too_large_are_refused(tmp_path):
    (tmp_path / "vae").mkdir()
    with open(tmp_path / "vae" / "weights", "wb") as file:
        file.truncate(MAX_BYTES)
    assert sizes(tmp_path) == {"vae": MAX_BYTES}
    with open(tmp_path / "vae" / "weights", "ab") as file:
        file.write(b"1")
    with pytest.raises(RunFailed, match="more than"):
        sizes(tmp_path)


def test_clips_are_evenly_spaced_frames_of_episodes_to_train_on(recordings):
    episodes = recordings.chosen(lambda episode: not episode.held_out)
    flat, spans = recordings.frames[64], vae.episode_spans(episodes, CPU)
    for clip_frames in vae.draw_clips(flat, spans, 8, 9, 64, generator_for(0, 1, CPU)):
        places = [{int(i) for i in (flat == frame).flatten(1).all(1).nonzero()} for frame in clip_frames]
        owners = [e for e in episodes if all(any(e.start <= i < e.start + e.length for i in found) for found in places)]
        assert owners


def test_the_crops_of_a_clip_are_one_square():
    pictures = torch.arange(5 * 6 * 6 * 3).view(5, 6, 6, 3)
    clips = vae.draw_clips(pictures, torch.tensor([(1, 4)]), 300, 3, 4, generator_for(0, 1, CPU))
    corners = set()
    for cropped in clips:
        place = int(cropped[0, 0, 0, 0]) % (6 * 6 * 3)
        row, column = divmod(place // 3, 6)
        numbers = cropped[:, 0, 0, 0].sub(place).div(6 * 6 * 3).long()
        assert numbers.min() >= 1
        assert torch.equal(cropped, pictures[numbers, row : row + 4, column : column + 4])
        corners.add((row, column))
    assert corners == {(row, column) for row in range(3) for column in range(3)}


def test_the_video_autoencoder_goes_from_crops_to_whole_pictures(recordings, tmp_path, monkeypatch):
    seen = []

    def draw(pictures, spans, batch, length, side, generator):
        seen.append((batch, side))
        return draw_clips(pictures, spans, batch, length, side, generator)

    draw_clips = vae.draw_clips
    monkeypatch.setattr(vae, "draw_clips", draw)
    monkeypatch.setattr(vae, "CROP", 16)
    smaller = replace(recordings, frames={32: recordings.frames[64][:, ::2, ::2].contiguous()})
    vae.train_vae(smaller, BuildFolder(tmp_path), LoopConfig(3), batch=4)
    assert seen[:3] == [(4, 16), (4, 16), (1, 32)]


def test_moving_pixels_are_those_that_change():
    clips = torch.zeros(1, 3, 4, 8, 8)
    clips[0, 1, 2, 3, 5] = 1.0
    assert vae.moving(clips).nonzero()[:, -2:].unique(dim=0).tolist() == [[3, 5]]


def test_frames_with_success_and_from_before_it_are_drawn():
    table = torch.tensor([(0, 20, 14), (100, 30, 1)])
    which, indices = clip.draw_frames(table, 500, generator_for(0, 1, CPU))
    start, length, solved = table[which].unbind(1)
    place = indices - start[:, None]
    assert ((place[:, 0] >= solved) & (place[:, 0] < length)).all()
    assert ((place[:, 1:] >= 0) & (place[:, 1:] < solved[:, None])).all()
    assert set(which.tolist()) == {0, 1}


def test_the_contrastive_loss_is_that_of_plain_loops():
    images = torch.nn.functional.normalize(torch.randn(5, 3, 8, dtype=torch.float64), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(5, 8, dtype=torch.float64), dim=-1)
    tasks, scale = torch.tensor([0, 1, 0, 2, 1]), torch.tensor(7.0, dtype=torch.float64)
    expected = {"to_image": 0.0, "to_text": 0.0, "when": 0.0}
    for i in range(5):
        own = [j for j in range(5) if tasks[j] == tasks[i]]
        candidates = [images[j, k] for j in range(5) for k in range(3)]
        total = sum(torch.exp(scale * texts[i] @ candidate) for candidate in candidates)
        expected["to_image"] -= float((sum(torch.exp(scale * texts[i] @ images[j, 0]) for j in own) / total).log()) / 5
        total = sum(torch.exp(scale * texts[j] @ images[i, 0]) for j in range(5))
        expected["to_text"] -= float((sum(torch.exp(scale * texts[j] @ images[i, 0]) for j in own) / total).log()) / 5
        within = torch.exp(scale * images[i] @ texts[i])
        expected["when"] -= float((within[0] / within.sum()).log()) / 5
    computed = clip.contrastive_losses(images, texts, tasks, scale)
    for name, value in expected.items():
        assert float(computed[name]) == pytest.approx(value, rel=1e-9)


def test_a_probe_recovers_a_linear_map_and_rates_noise_at_zero():
    features, weights = torch.randn(400, 6, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    targets = features @ weights + 3
    assert dino.r_squared(dino.fit_probe(features[:300], targets[:300]), features[300:], targets[300:]) > 0.99
    still = torch.cat([targets, torch.full((400, 1), 0.7, dtype=torch.float64)], 1)  # a third that never varies
    assert dino.r_squared(dino.fit_probe(features[:300], still[:300]), features[300:], still[300:]) > 0.99
    noise = torch.randn(400, 2, dtype=torch.float64)
    assert dino.r_squared(dino.fit_probe(features[:300], noise[:300]), features[300:], noise[300:]) < 0.3


def test_what_is_unusual_at_its_place_weighs_more():
    usual, variance = torch.zeros(1, 3, 2, 2), torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    pixels = torch.tensor([[0.3, 0.3], [0.0, 0.0]]).expand(1, 3, 2, 2)
    weights = dino.unusual(pixels, usual, variance)[0, 0]
    assert weights[0, 0] > 2 * weights[0, 1] > 2
    assert weights[1].tolist() == [1, 1]


def test_any_cuda_device_is_taken(toy, monkeypatch):
    """torch.cuda.set_device takes no device without an index."""
    folder, config = toy
    chosen = []

    def set_device(device):
        assert device.index is not None
        chosen.append(device)

    class Stop(Exception):
        pass

    def read(*_):
        raise Stop

    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    monkeypatch.setattr("torch.backends.cudnn.benchmark", False)
    monkeypatch.setattr("torch.backends.cudnn.benchmark_limit", 10)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    monkeypatch.setattr("genreward_fast.goals.assets.build.read_recordings", read)
    for name in ("cuda", "cuda:1"):
        with pytest.raises(Stop):
            build(folder.root, ["vae"], torch.device(name), recording=config)
    assert chosen == [torch.device("cuda:1")]


def test_held_out_tasks_are_never_trained_on():
    from genreward_fast.envs.tasks import PAPER_TASKS, TASKS
    from genreward_fast.goals.assets.plan import RecordingConfig

    assert set(HELD_OUT_TASKS) <= set(TASKS) - set(PAPER_TASKS)
    for task in TASKS:
        trained = sum(train for train, _ in RecordingConfig().counts(task))
        assert (trained == 0) == (task in HELD_OUT_TASKS)
