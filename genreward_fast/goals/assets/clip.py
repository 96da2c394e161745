"""The tiny OpenCLIP model: a sentence and the frames of its task once it is done, close to each other."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from genreward_fast.encoders.architectures import build_clip
from genreward_fast.encoders.clip import TextImageEncoder
from genreward_fast.encoders.clip_weights import read_clip
from genreward_fast.envs.tasks import TASKS, describe
from genreward_fast.goals.assets.loop import LoopConfig, Trained, train
from genreward_fast.goals.assets.plan import BuildFolder
from genreward_fast.goals.assets.recordings import Episode, Recordings
from genreward_fast.goals.assets.saving import autocast, saved_folder
from genreward_fast.goals.captions import captions
from genreward_fast.goals.selection import TEMPLATES, embed_text, select_frame
from genreward_fast.kernels.frames import FrameFormat, frames

STEPS = 8_000
BATCH = 192
EARLIER = 3
"""Frames of the same episode from before its first success, against each one from after it."""
_SHIFT = 4  # pixels by which a batch is moved at most


def contrastive_losses(images: Tensor, texts: Tensor, tasks: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """Multi-positive InfoNCE (arXiv 2103.00020, 2004.11362), with earlier frames of an episode as negatives.

    Args:
        images: (B, 1 + E, D) unit vectors: of each episode a frame that shows success, then E from before it.
        texts: (B, D) unit vectors of the episodes' captions.
        tasks: (B,) int64, the episodes' tasks; frames and captions of one task belong together.
        scale: () the inverse temperature.
    """
    same = tasks[:, None] == tasks
    solved, earlier = images[:, 0], images[:, 1:].flatten(0, 1)
    right = scale * texts @ solved.T
    every = torch.cat([right, scale * texts @ earlier.T], 1)
    floor = torch.finfo(right.dtype).min
    to_image = (every.logsumexp(1) - right.masked_fill(~same, floor).logsumexp(1)).mean()
    to_text = (right.logsumexp(0) - right.masked_fill(~same, floor).logsumexp(0)).mean()
    within = scale * torch.einsum("bed,bd->be", images, texts)
    when = (within.logsumexp(1) - within[:, 0]).mean()
    return {"loss": to_image + to_text + when, "to_image": to_image, "to_text": to_text, "when": when}


def draw_frames(
    episodes: Tensor, batch: int, generator: torch.Generator, earlier: int = EARLIER
) -> tuple[Tensor, Tensor]:
    """Episodes and frames of them.

    Args:
        episodes: (M, 3) int64: first frame, number of frames, the first of them that shows success (at least 1).

    Returns:
        (batch,) int64, which episode; (batch, 1 + earlier) int64, a frame with success and those from before it, the
        first of which is one of the last tenth before the success.
    """
    device = episodes.device
    which = torch.randint(len(episodes), (batch,), generator=generator, device=device)
    start, length, solved = episodes[which].unbind(1)
    draws = torch.rand(batch, 1 + earlier, generator=generator, device=device)
    after = solved + (draws[:, 0] * (length - solved)).long()
    before = (draws[:, 1:] * solved[:, None]).long()
    before[:, 0] = ((0.9 + 0.1 * draws[:, 1]) * solved).long()
    before = torch.minimum(before, solved[:, None] - 1)
    return which, start[:, None] + torch.cat([after[:, None], before], 1)


def train_clip(
    recordings: Recordings, folder: BuildFolder, config: LoopConfig, *, batch: int = BATCH, resume: bool = False
) -> Trained:
    """Trains both towers on the experts' episodes, and saves them as float16 in open_clip's format."""
    device = recordings.device
    model, tokenizer, model_config = build_clip("tiny", config.seed)
    clip: Any = model.to(device)
    preprocess = dict(clip.visual.preprocess_cfg)
    episodes = recordings.chosen(_solved_by_training)
    table = torch.tensor([(e.start, e.length, e.solved_from) for e in episodes], device=device)
    tasks = torch.tensor([TASKS.index(e.task) for e in episodes], device=device)
    texts = {task: [t.format(c) for t in TEMPLATES for c in captions(task)] for task in {e.task for e in episodes}}
    tokens = {task: tokenizer(wordings) for task, wordings in texts.items()}
    most = max(map(len, tokens.values()))
    # Tasks with fewer wordings repeat them, so that one index draws from all.
    table_of_tokens = torch.zeros(len(TASKS), most, tokens[episodes[0].task].shape[1], dtype=torch.int64)
    for task, rows in tokens.items():
        table_of_tokens[TASKS.index(task)] = rows[torch.arange(most) % len(rows)]
    table_of_tokens = table_of_tokens.to(device)
    pictures = recordings.frames[max(recordings.frames)]
    picture_format = _format(preprocess)

    def losses(generator: torch.Generator, _done: float) -> dict[str, Tensor]:
        which, indices = draw_frames(table, batch, generator)
        wording = torch.randint(most, (batch,), generator=generator, device=device)
        pixels = frames(pictures[indices.flatten()], picture_format, torch.float32)
        with autocast(device):
            images = clip.encode_image(_augmented(pixels, generator), normalize=True)
            sentences = clip.encode_text(table_of_tokens[tasks[which], wording], normalize=True)
        scale = clip.logit_scale.clamp(max=4.6).exp()
        return contrastive_losses(images.float().unflatten(0, (batch, -1)), sentences.float(), tasks[which], scale)

    trained = train("clip", clip, losses, config, folder.checkpoint("clip"), device=device, resume=resume)
    state = {name: value.half().contiguous().cpu() for name, value in clip.state_dict().items()}
    with saved_folder(folder.weights("clip")) as target:
        save_file(state, target / "open_clip_model.safetensors")
        described = {"model_cfg": model_config, "preprocess_cfg": preprocess}
        (target / "open_clip_config.json").write_text(json.dumps(described, indent=2) + "\n")
    return trained


def _solved_by_training(episode: Episode) -> bool:
    return episode.kind == "expert" and not episode.held_out and bool(episode.solved_from)


def _format(preprocess: dict[str, Any]) -> FrameFormat:
    size = preprocess["size"]
    side = size if isinstance(size, int) else size[0]
    mean, std = tuple(preprocess["mean"]), tuple(preprocess["std"])
    return FrameFormat((side, side), mean, std, interpolation="bicubic", crop=True, bytes_between=True)


def _augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Moved by a few pixels, all alike, and brightened or darkened, each on its own."""
    device = pixels.device
    top, left = torch.randint(2 * _SHIFT + 1, (2,), generator=torch.Generator().manual_seed(generator.initial_seed()))
    height, width = pixels.shape[-2:]
    padded = functional.pad(pixels, (_SHIFT,) * 4, mode="replicate")
    moved = padded[..., top : top + height, left : left + width]
    gain, offset = torch.rand(2, len(pixels), 1, 1, 1, generator=generator, device=device) - 0.5
    return moved * (1 + 0.3 * gain) + 0.3 * offset


@torch.no_grad()
def measure_clip(recordings: Recordings, folder: BuildFolder) -> dict[str, float]:
    """With the saved weights, on held-out expert episodes of all tasks.

    Returns:
        top1, top5: how often a task's sentence ranks the frame of its first success (one of each task) so high.
        at_or_after: how often the frame that is chosen for the sentence lies at or after the first success; and
        at_or_after_by_chance, what choosing at random would give.
    """
    encoder = TextImageEncoder(*read_clip(str(folder.weights("clip")), "ViT-B-32")).to(recordings.device)
    pictures = recordings.frames[max(recordings.frames)]
    episodes = recordings.chosen(lambda e: e.kind == "expert" and e.held_out and bool(e.solved_from))
    by_task: dict[str, list[Episode]] = {}
    for episode in episodes:
        by_task.setdefault(episode.task, []).append(episode)
    sentences = torch.stack([embed_text(describe(task), encoder) for task in by_task])
    ranks = []
    for turn in range(min(map(len, by_task.values()))):
        shown = [row[turn].start + (row[turn].solved_from or 0) for row in by_task.values()]
        scores = sentences @ encoder.encode_images(pictures[torch.tensor(shown, device=pictures.device)]).T
        ranks.append((scores > scores.diag()[:, None]).sum(1))
    rank = torch.cat(ranks)
    hits, chance = [], []
    for episode in episodes:
        solved = episode.solved_from or 0
        clip = pictures[episode.start : episode.start + episode.length]
        hits.append(select_frame(clip, describe(episode.task), encoder).index >= solved)
        chance.append(1 - solved / episode.length)
    return {
        "tasks": len(by_task),
        "top1": round(float((rank < 1).float().mean()), 3),
        "top5": round(float((rank < 5).float().mean()), 3),
        "at_or_after": round(sum(hits) / len(hits), 3),
        "at_or_after_by_chance": round(sum(chance) / len(chance), 3),
    }
