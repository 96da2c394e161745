"""From demonstrations to a codec and a model of its codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.files import write_json
from genreward_fast.rewards.fitting import FitConfig, FitResult
from genreward_fast.rewards.frame_model.codec import FrameCodec, build_codec, read_codec
from genreward_fast.rewards.frame_model.expert_frames import ExpertFrames, read_expert_frames
from genreward_fast.rewards.frame_model.folder import CODEC, FORMAT, MODEL, RECORD, save_whole
from genreward_fast.rewards.frame_model.stage import CHECKPOINT, Stage, load_checkpoint, run_stage

RESTART_EVERY = 20
"""Updates between two looks at which codes are used, during the first three quarters of the codec's: a codebook that is
left alone soon collapses to a few codes, and the model of the codes then has nothing to tell frames apart by."""
AT_ONCE = 256
"""Frames that are encoded in one call."""


@dataclass(frozen=True)
class FrameModel:
    """What is particular to one reward's model of codes.

    Attributes:
        build: an untrained network for a codec's codes, with weights from the global generator; it has diffusers' and
            transformers' `save_pretrained`.
        rows: the rows of the frames that make up each example, as `loss` and `scores` expect them.
        loss: network, all codes (F, L), rows, batch size -> the loss of a batch that it draws itself.
        scores: network, all codes, rows -> (M,) scores of expert frames, as the reward computes them.
    """

    build: Callable[[FrameCodec, str], Any]
    rows: Callable[[ExpertFrames], Any]
    loss: Callable[[Any, Tensor, Any, int], Tensor]
    scores: Callable[[Any, Tensor, Any], Tensor]


def fit_frame_model(config: FitConfig, model: FrameModel) -> FitResult:
    """Fits the codec, then the model, and writes the folder that `frame_model/folder.py` describes.

    Raises:
        UserError: no demonstrations, or `out` holds something else than what is to be resumed.
        Interrupted: a signal came; a checkpoint was written.
        TrainingDiverged: a loss is not finite.
    """
    _check_out(config)
    expert = read_expert_frames(config.data)
    identity = {
        "reward": config.reward, "data": expert.sha256, "preset": config.preset, "steps": config.steps,
        "batch size": config.batch_size, "lr": config.lr, "seed": config.seed,
    }  # fmt: skip
    resumed = load_checkpoint(config.out, identity) if config.resume else None
    config.out.mkdir(parents=True, exist_ok=True)
    if resumed is None or resumed["stage"] == CODEC:
        codec, codec_losses = _fit_codec(config, expert.frames, identity, resumed)
        resumed = None
    else:
        codec, codec_losses = read_codec(config.out / CODEC, "--out").to(config.device), resumed["codec losses"]
    codec.eval()
    network = _seeded(config, lambda: model.build(codec, config.preset))
    rows = model.rows(expert)
    codes = torch.cat([codec.encode(part.to(config.device)) for part in expert.frames.split(AT_ONCE)])
    stage = Stage(MODEL, network, lambda _: model.loss(network, codes, rows, config.batch_size))
    losses = run_stage(stage, config, identity | {"codec losses": codec_losses}, resumed)
    with torch.no_grad():
        scores = model.scores(network, codes, rows).double()
    save_whole(config.out / MODEL, network.save_pretrained)
    record = FORMAT | identity
    record |= {
        "demonstrations": str(config.data), "clips": expert.clips, "frames": len(expert.frames),
        "mean": scores.mean().item(), "deviation": max(scores.std(correction=0).item(), 1e-6),
        "losses": {CODEC: codec_losses, MODEL: losses},
        "codes used": len(codes.unique()), "codes": codec.vocabulary,
    }  # fmt: skip
    write_json(config.out / RECORD, record)
    (config.out / CHECKPOINT).unlink(missing_ok=True)
    return FitResult(config.out, record, _lines(config, record))


def _check_out(config: FitConfig) -> None:
    if (config.out / RECORD).exists():
        raise UserError(f"{config.out}: holds finished weights already; name another folder with --out")
    if config.resume:
        return
    if (config.out / CHECKPOINT).exists():
        raise UserError(f"{config.out}: holds a checkpoint; go on with --resume, or name another folder with --out")
    if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
        raise UserError(f"{config.out}: is not an empty folder; name another one with --out")


def _fit_codec(
    config: FitConfig, frames: Tensor, identity: dict[str, Any], resumed: dict[str, Any] | None
) -> tuple[FrameCodec, list[list[float]]]:
    codec = _seeded(config, lambda: build_codec(config.preset))

    def loss(step: int) -> Tensor:
        batch = frames[torch.randint(len(frames), (config.batch_size,))].to(config.device)
        if step % RESTART_EVERY == 0 and 4 * step < 3 * config.steps:
            codec.restart_unused(batch)
        return codec.loss(batch)

    losses = run_stage(Stage(CODEC, codec, loss), config, identity, resumed)
    save_whole(config.out / CODEC, codec.model.save_pretrained)
    return codec, losses


def _seeded(config: FitConfig, build: Callable[[], Any]) -> Any:
    """A network with weights that follow from the seed alone, the same on every device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build().to(config.device)


def _lines(config: FitConfig, record: dict[str, Any]) -> list[str]:
    losses = {name: curve[-1][1] for name, curve in record["losses"].items()}
    return [
        f"frames  {record['frames']} of {len(record['clips'])} clips",
        f"codec   loss {losses[CODEC]:.4f}, {record['codes used']} of {record['codes']} codes are used",
        f"model   loss {losses[MODEL]:.4f}",
        f"scores  of expert frames {record['mean']:.2f} ± {record['deviation']:.2f}",
        f"folder  {config.out}: genreward train --reward {config.reward} --reward-weights {config.out}",
    ]
