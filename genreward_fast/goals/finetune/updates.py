"""The updates of the transformer's trained weights, in one process or several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from genreward_fast.encoders.architectures import seeded
from genreward_fast.goals.finetune.batches import Example, load_batch
from genreward_fast.goals.finetune.conditioning import Conditioning
from genreward_fast.goals.finetune.config import FinetuneConfig
from genreward_fast.goals.finetune.encoded import EncodedClips
from genreward_fast.goals.finetune.objective import denoising_loss, loss_weights, regression_target
from genreward_fast.goals.finetune.schedule import learning_rate
from genreward_fast.goals.finetune.state import trained
from genreward_fast.goals.lora import add_lora
from genreward_fast.goals.video_model import Transformer, cast


class Updates:
    """The transformer with its optimiser and moving average.

    Attributes:
        transformer: the library's model, which `model` may wrap.
        model, optimizer: as accelerate has prepared them.
        ema: None without one.
        lora_metadata: the adapters' configuration; None if all weights are trained.
        dtype: what is computed in.
    """

    def __init__(
        self,
        transformer: Transformer,
        scheduler: Any,
        conditioning: Conditioning,
        config: FinetuneConfig,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.transformer, self.scheduler, self.conditioning = transformer, scheduler, conditioning
        self.dtype = getattr(torch, config.dtype)
        self.lora_metadata: dict[str, Any] | None = None
        if config.lora_rank is None:
            cast(transformer, torch.float32).requires_grad_(True)
        else:
            with seeded(config.seed):
                self.lora_metadata = add_lora(cast(transformer, self.dtype), config.lora_rank)
        if config.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        transformer.train()
        optimizer = torch.optim.AdamW(
            trained(transformer),
            config.lr,
            (config.beta1, config.beta2),
            weight_decay=config.weight_decay,
            # PyTorch's other way on GPUs needs room for as many numbers as it trains once more.
            fused=accelerator.device.type == "cuda" or None,
        )
        self.model, self.optimizer = accelerator.prepare(transformer, optimizer)
        self.ema = EMAModel(trained(self.model), decay=config.ema_decay) if config.ema_decay else None
        self.patch_t: int = transformer.config.patch_size_t or 1
        self.timesteps: int = scheduler.config.num_train_timesteps

    def gradients(self, clips: EncodedClips, step: int, trained_on: int) -> Tensor:
        """Adds up the gradients of a step's examples.

        Returns:
            () float32: this process's loss.
        """
        config, processes = self.config, self.accelerator.num_processes
        total = torch.zeros((), device=self.accelerator.device)
        for part in range(config.accumulate):
            share = (step * config.accumulate + part) * processes + self.accelerator.process_index
            numbers = range(share * config.batch_size, (share + 1) * config.batch_size)
            batch = load_batch(clips, numbers, trained_on, config, self.timesteps, self.patch_t)
            last = part + 1 == config.accumulate
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = self.loss(batch) / config.accumulate
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def apply(self, step: int) -> float:
        """Changes the weights by the gradients.

        Returns:
            the gradient's norm before it was cut.
        """
        norm: Any = self.accelerator.clip_grad_norm_(trained(self.model), self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.step(trained(self.model))
        return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the transformer has the weights that the run would give, their moving average, and does not train."""
        parameters = trained(self.model)
        if self.ema is not None:
            self.ema.store(parameters)
            self.ema.copy_to(parameters)
        self.transformer.eval()
        try:
            yield
        finally:
            self.transformer.train()
            for module in self.model.modules():
                if isinstance(module, FSDPModule):  # without a backward pass it would keep what it has gathered
                    module.reshard()
            if self.ema is not None:
                self.ema.restore(parameters)

    def loss(self, batch: Example) -> Tensor:
        """() float32 of a batch, which may lie on the CPU."""
        batch = Example(**{name: value.to(self.accelerator.device) for name, value in vars(batch).items()})
        latents = self.conditioning.video_latents(batch.video)
        prediction = self.model(**self.inputs(batch, latents))[0]
        target = regression_target(self.scheduler, latents, batch.noise, batch.timestep)
        return denoising_loss(prediction, target, loss_weights(self.scheduler, batch.timestep, self.config.weighting))

    def inputs(self, batch: Example, latents: Tensor) -> dict[str, Any]:
        """The transformer's arguments for a batch; `latents` as `Conditioning.video_latents` gives them."""
        noisy = self.scheduler.add_noise(latents, batch.noise, batch.timestep)
        image = self.conditioning.image_latents(batch.image, latents.shape[1])
        return self.conditioning.model_inputs(noisy, image, batch.text, batch.timestep, self.dtype)
