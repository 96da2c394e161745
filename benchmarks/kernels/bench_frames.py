"""Times `frames` at the frames of one call: DINOv3's as they are rendered and from clips, and OpenCLIP's from clips."""

from __future__ import annotations

from functools import partial

import torch
from comparing import Case, compare
from timing import arguments

from genreward_fast.kernels.frames import FrameFormat, frames, frames_reference

SIDE, CLIP_SIDE = 224, 480
DINO = FrameFormat((SIDE, SIDE), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = FrameFormat((SIDE, SIDE), (0.481, 0.458, 0.408), (0.269, 0.261, 0.276), "bicubic", crop=True, bytes_between=True)


def cases(rows: int, device: torch.device, dtype: torch.dtype) -> tuple[str, list[Case]]:
    def case(name: str, how: FrameFormat, side: int) -> Case:
        image = torch.randint(0, 256, (rows, side, side, 3), dtype=torch.uint8, device=device)
        size = image.nbytes + rows * 3 * SIDE * SIDE * dtype.itemsize
        ours, reference = (partial(function, how=how, dtype=dtype) for function in (frames, frames_reference))
        return Case(name, ours, reference, (image,), size)

    of_clips = f"from {CLIP_SIDE}"
    made = [
        case("frames", DINO, SIDE),
        case(f"bilinear {of_clips}", DINO, CLIP_SIDE),
        case(f"bicubic {of_clips}", CLIP, CLIP_SIDE),
    ]
    return f"{rows} to {SIDE}x{SIDE}x3", made


if __name__ == "__main__":
    compare("frames", arguments(__doc__ or "", [1, 16, 64]).parse_args(), cases)
