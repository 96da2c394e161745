"""The tiny DINOv3: frames to class tokens, learned from frames alone."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any, Self

import torch
from torch import Tensor, nn

from genreward_fast.encoders.architectures import build_dino, seeded
from genreward_fast.encoders.image import ImageEncoder, read_dino
from genreward_fast.goals.assets.dino_loss import Prototypes, dino_loss, koleo_loss, sinkhorn
from genreward_fast.goals.assets.loop import LoopConfig, Trained, train
from genreward_fast.goals.assets.plan import BuildFolder
from genreward_fast.goals.assets.recordings import Episode, Recordings, frame_indices
from genreward_fast.goals.assets.saving import autocast, saved_folder
from genreward_fast.goals.assets.views import crops, recoloured
from genreward_fast.kernels.frames import FrameFormat, frames

STEPS = 20_000
BATCH = 512
GLOBAL, LOCAL = 2, 4
"""Views of each frame that the teacher sees, too, and smaller ones that only the student sees."""
_GLOBAL_SIDES, _LOCAL_SIDES = (0.8, 1.0), (0.4, 0.7)
_LOCAL_SIZE = 48
_KOLEO_WEIGHT = 0.1
_PICTURE_WEIGHT = 10.0
_UNUSUAL_WEIGHT, _MOST_UNUSUAL = 2.0, 30.0
_EMA = 0.996
_RIDGE = 1e-3
_NOISE = 0.02  # variance of normalised colours at which a place is as good as still
_STILL = 1e-3  # metres: what moves less stands still


class Learner(nn.Module):
    """Student and teacher, and a small decoder that draws the frame from the student's class token.

    Crops teach the class token to forget where things are; the decoder, whose loss weighs pixels by how unusual they
    are for the task's frames, teaches it to keep that.
    """

    def __init__(self, vit: Any, size: int) -> None:
        super().__init__()
        dim = vit.config.hidden_size
        self.vit, self.head = vit, Prototypes(dim)
        self.teacher = deepcopy(vit).requires_grad_(False)
        self.teacher_head = deepcopy(self.head).requires_grad_(False)
        start = size // 8
        self.decoder = nn.Sequential(
            nn.Linear(dim, 128 * start * start),
            nn.Unflatten(1, (128, start, start)),
            nn.GELU(),
            nn.ConvTranspose2d(128, 64, 4, 2, 1),
            nn.GELU(),
            nn.ConvTranspose2d(64, 32, 4, 2, 1),
            nn.GELU(),
            nn.ConvTranspose2d(32, 3, 4, 2, 1),
        )

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, in which the library's position embeddings are not jittered from NumPy's generator."""
        return super().train(False)

    @torch.no_grad()
    def follow(self, far: float) -> None:
        """Moves the teacher towards the student, less and less."""
        rate = 0.5 * (1 - _EMA) * (1 + math.cos(math.pi * min(far, 1.0)))
        teacher = [*self.teacher.parameters(), *self.teacher_head.parameters()]
        student = [*self.vit.parameters(), *self.head.parameters()]
        torch._foreach_lerp_(teacher, student, rate)


def unusual(pixels: Tensor, usual: Tensor, variance: Tensor) -> Tensor:
    """(N, 1, S, S) weights of pixels: 1, and more where they are further from their task's mean than is common there.

    Against the variance at each place an object of a few pixels counts as much as the arm, which moves everywhere.

    Args:
        pixels, usual: (N, 3, S, S) frames and the means of their tasks.
        variance: (N, 1, S, S) of the task's frames, averaged over the colours.
    """
    ratio = (pixels - usual).square().mean(1, keepdim=True) / (variance + _NOISE)
    return 1 + _UNUSUAL_WEIGHT * ratio.clamp(max=_MOST_UNUSUAL)


def learner_losses(
    learner: Learner, pixels: Tensor, usual: Tensor, variance: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """DINO over crops, KoLeo, and the decoder's picture of the whole frame.

    Args:
        pixels: (N, 3, S, S) float32, normalised frames.
        usual: (N, 3, S, S) float32, the mean frame of each one's task.
        variance: (N, 1, S, S) float32, how far each task's frames are from it.
    """
    size = pixels.shape[-1]
    seen = recoloured(crops(pixels.repeat(GLOBAL, 1, 1, 1), size, _GLOBAL_SIDES, generator), 0.8, generator)
    small = recoloured(crops(pixels.repeat(LOCAL, 1, 1, 1), _LOCAL_SIZE, _LOCAL_SIDES, generator), 0.8, generator)
    whole = recoloured(pixels, 0.2, generator)
    with autocast(pixels.device):
        with torch.no_grad():
            taught = learner.teacher_head(learner.teacher(pixel_values=seen).pooler_output)
        tokens = learner.vit(pixel_values=torch.cat([seen, whole])).pooler_output
        local = learner.vit(pixel_values=small).pooler_output
        scores = learner.head(torch.cat([tokens[: len(seen)], local]))
        drawn = learner.decoder(tokens[len(seen) :]).float()
    targets = torch.stack([sinkhorn(view) for view in taught.unflatten(0, (GLOBAL, -1))])
    dino = dino_loss(scores.unflatten(0, (GLOBAL + LOCAL, -1)), targets)
    koleo = torch.stack([koleo_loss(view) for view in tokens[: len(seen)].unflatten(0, (GLOBAL, -1))]).mean()
    weight = unusual(pixels, usual, variance)
    picture = (weight * (drawn - pixels).abs()).sum() / (3 * weight.sum())
    loss = dino + _KOLEO_WEIGHT * koleo + _PICTURE_WEIGHT * picture
    return {"loss": loss, "dino": dino, "koleo": koleo, "picture": picture}


def train_dino(
    recordings: Recordings, folder: BuildFolder, config: LoopConfig, *, batch: int = BATCH, resume: bool = False
) -> Trained:
    """Trains on all frames that are not held out, as rendered and as reduced from clips; saves the teacher, float16."""
    device = recordings.device
    vit: Any = build_dino("tiny", config.seed)
    size = vit.config.image_size
    encoder = ImageEncoder(deepcopy(vit), size=size)
    with seeded(config.seed):
        learner = Learner(vit, size).to(device)
    episodes = recordings.chosen(lambda episode: not episode.held_out)
    rows = frame_indices(episodes, device)
    tasks = sorted({episode.task for episode in episodes})
    task_of = torch.cat([torch.full((e.length,), tasks.index(e.task)) for e in episodes]).to(device)
    small, large = min(recordings.frames), max(recordings.frames)
    usual, variance = _usual(recordings.frames[small], rows, task_of, len(tasks), encoder.format)

    def losses(generator: torch.Generator, _done: float) -> dict[str, Tensor]:
        picked = torch.randint(len(rows), (batch,), generator=generator, device=device)
        half = batch // 2
        rendered = frames(recordings.frames[small][rows[picked[:half]]], encoder.format, torch.float32)
        reduced = frames(recordings.frames[large][rows[picked[half:]]], encoder.format, torch.float32)
        own = task_of[picked]
        return learner_losses(learner, torch.cat([rendered, reduced]), usual[own], variance[own], generator)

    trained = train(
        "dino", learner, losses, config, folder.checkpoint("dino"), device=device, after=learner.follow, resume=resume
    )
    teacher: Any = learner.teacher
    with saved_folder(folder.weights("dino")) as target:
        teacher.half().save_pretrained(target, safe_serialization=True)
    return trained


def _usual(
    pictures: Tensor, rows: Tensor, task_of: Tensor, tasks: int, picture_format: FrameFormat
) -> tuple[Tensor, Tensor]:
    """Of each task's normalised frames the mean (tasks, 3, S, S) and the variance (tasks, 1, S, S), float32."""
    means, variances = [], []
    for task in range(tasks):
        shown = frames(pictures[rows[task_of == task][::7]], picture_format, torch.float32)
        means.append(shown.mean(0))
        variances.append(shown.var(0, correction=0).mean(0, keepdim=True))
    return torch.stack(means), torch.stack(variances)


@torch.no_grad()
def measure_dino(recordings: Recordings, folder: BuildFolder, held_out_tasks: tuple[str, ...]) -> dict[str, float]:
    """R² of linear probes of positions, with the saved weights, averaged over the three coordinates.

    The probes are fitted on the episodes that were trained on, and judged on held-out ones of the same tasks. `gripper`
    and `object` are one probe for all tasks; `..._within` one for each task, judged against the task's own mean,
    residuals and variances added up over the tasks; `gripper_tasks` is the first, on the held-out tasks.
    """
    vit = read_dino(str(folder.weights("dino")))
    small = min(recordings.frames)
    encoder = ImageEncoder(vit, size=small).to(recordings.device)

    def of(episodes: tuple[Episode, ...]) -> tuple[Tensor, Tensor]:
        rows = frame_indices(episodes, recordings.device)
        return encoder(recordings.frames[small][rows]).double(), recordings.states[rows].double()

    seen = recordings.chosen(lambda e: not e.held_out)
    held = recordings.chosen(lambda e: e.held_out and e.task not in held_out_tasks)
    unseen = tuple(e for e in recordings.episodes if e.task in held_out_tasks)
    fitted, judged = of(seen), of(held)
    results = {}
    for name, part in (("gripper", slice(0, 3)), ("object", slice(4, 7))):
        probe = fit_probe(fitted[0], fitted[1][:, part])
        results[name] = r_squared(probe, judged[0], judged[1][:, part])
        if name == "gripper" and unseen:
            features, states = of(unseen)
            results["gripper_tasks"] = r_squared(probe, features, states[:, part])
        sums = torch.zeros(2, dtype=torch.float64, device=recordings.device)
        for task in sorted({e.task for e in held}):
            features, states = of(tuple(e for e in seen if e.task == task))
            own, true = of(tuple(e for e in held if e.task == task))
            sums += _residual_and_variance(fit_probe(features, states[:, part]), own, true[:, part]).sum(1)
        results[f"{name}_within"] = float(1 - sums[0] / sums[1])
    return {name: round(value, 3) for name, value in results.items()}


def fit_probe(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ridge regression of (N, K) targets on (N, D) features: the features' mean, weights (D, K), the targets' mean."""
    mean, centre = features.mean(0), targets.mean(0)
    centred = features - mean
    gram = centred.T @ centred
    ridge = _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return mean, torch.linalg.solve(gram + ridge, centred.T @ (targets - centre)), centre


def r_squared(probe: tuple[Tensor, Tensor, Tensor], features: Tensor, targets: Tensor) -> float:
    """1 - residual / variance of (N, K) targets, averaged over those of the K that vary at all."""
    residual, variance = _residual_and_variance(probe, features, targets)
    varies = variance > len(targets) * _STILL**2
    return float((1 - residual / variance)[varies].mean())


def _residual_and_variance(probe: tuple[Tensor, Tensor, Tensor], features: Tensor, targets: Tensor) -> Tensor:
    """(2, K): sums of squares of what the probe leaves, and around the mean."""
    mean, weights, centre = probe
    residual = (features - mean) @ weights + centre - targets
    return torch.stack([residual.square().sum(0), (targets - targets.mean(0)).square().sum(0)])
