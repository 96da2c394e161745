"""One of two processes that fine-tune with weights split up (FSDP2) on a CPU, which accelerate offers on GPUs only."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from genreward_fast.goals.finetune.start import finetune


def prepare(self, model, optimizer):
    """Splits up each block and the rest, as accelerate's FSDP 2 does with the configuration that is documented."""
    mesh = init_device_mesh("cpu", (self.num_processes,))
    for block in model.transformer_blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    settings = {key: optimizer.defaults[key] for key in ("lr", "betas", "weight_decay")}
    return model, self.prepare_optimizer(torch.optim.AdamW(trained, **settings))


if __name__ == "__main__":
    data, model, out, settings = sys.argv[1:]
    Accelerator.prepare = prepare
    cpu = torch.device("cpu")
    for steps, resume in ((2, False), (3, True)):
        given = {"steps": steps} | ({} if resume else json.loads(settings))
        finetune(Path(data), "paper", model, Path(out), resume=resume, device=cpu, settings=given)
