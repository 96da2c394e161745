"""The backends by name, and the two calls that everything else uses: `build_engine` and `load_engine`."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from genreward_fast.errors import UserError
from genreward_fast.export.aotinductor import AOTInductorBackend
from genreward_fast.export.engine import Backend, Engine, Manifest, TensorSpec
from genreward_fast.export.engine_file import file_sha256, payload_file, read_manifest, write_engine_file
from genreward_fast.export.machine import compute_capability, cpu_features, gpu_record, parse_device
from genreward_fast.export.onnx_backend import OnnxRuntimeBackend
from genreward_fast.export.weights import weights_sha256

BACKENDS: dict[str, Backend] = {entry.name: entry for entry in (AOTInductorBackend(), OnnxRuntimeBackend())}

# Relative RMS error above which an engine is not written.
FLOAT32_BAR = 1e-4
HALF_BAR = 1e-2


def backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        UserError: there is none.
    """
    if name not in BACKENDS:
        raise UserError(f"{name}: no such engine backend; there are {', '.join(BACKENDS)}")
    return BACKENDS[name]


_backend, _compute_capability = backend, compute_capability  # below, these are parameters


def available() -> list[str]:
    """Names of the backends that can build on this machine."""
    return [name for name, entry in BACKENDS.items() if entry.why_unavailable() is None]


def build_engine(
    module: torch.nn.Module,
    inputs: tuple[Tensor, ...],
    path: str | Path,
    backend: str,
    dynamic_batch: bool = True,
    max_batch: int = 1024,
    compute_capability: str | None = None,
) -> Manifest:
    """Builds an engine for the device that `inputs` lie on, compares it with the module, and writes it to `path`.

    Args:
        module: in evaluation mode; takes tensors, returns one tensor.
        inputs: examples, on the module's device and best of the batch size that will run most. Their values are what
            the comparison uses, so give real or random data, not zeros.
        path: the engine's file; an older one is replaced only by a whole new one.
        dynamic_batch: axis 0 of every input and of the output is a batch of any size up to `max_batch`.
        max_batch: as small as it may be: where a tensor could pass 2^31 elements, kernels use slower 64-bit indices.
        compute_capability: what it is to run on, "sm_89" and the like, if that is not the inputs' device.

    Returns:
        The manifest, with `fidelity` the largest relative RMS error over the batch sizes tried.

    Raises:
        UserError: the backend is unknown or unavailable, the module or the inputs do not fit the above, the library
            cannot build it, or the error is above 1e-4 (1e-2 where the module or its inputs hold half precision).
    """
    chosen = _backend(backend)
    if reason := chosen.why_unavailable():
        raise UserError(f"engine backend {backend}: {reason}")
    title = type(module).__name__
    inputs = _checked_inputs(module, inputs, dynamic_batch, max_batch)
    device = parse_device(inputs[0].device)
    here = _compute_capability(device)
    if compute_capability not in (None, here):
        raise UserError(
            f"engine backend {backend}: builds for this machine's {here} only, not for {compute_capability}"
        )
    dynamic = dynamic_batch and max_batch > 1
    with _user_errors(f"{title} on the example inputs"), torch.no_grad():
        cases = [(case, module(*case)) for case in _cases(inputs, dynamic, max_batch)]
    for case, output in cases:
        if not isinstance(output, Tensor):
            raise UserError(f"{title} returns a {type(output).__name__}; an engine returns one tensor: wrap the module")
        if dynamic and (output.dim() == 0 or output.shape[0] != case[0].shape[0]):
            raise UserError(f"axis 0 of the output of {title} is not the batch; build with dynamic_batch=False")
    with tempfile.TemporaryDirectory(prefix="genreward-build-") as folder:
        payload = Path(folder) / f"payload{chosen.suffix}"
        with _user_errors(f"{title} cannot be built with {backend}"):
            chosen.build(module, inputs, payload, dynamic, max_batch)
        axis = 0 if dynamic else None
        manifest = Manifest(
            backend=chosen.name,
            backend_version=chosen.version(),
            weights_sha256=weights_sha256(module),
            payload_sha256=file_sha256(payload),
            compute_capability=here,
            cpu_features=cpu_features() if chosen.has_host_code else (),
            inputs=tuple(TensorSpec.of(tensor, axis) for tensor in inputs),
            output=TensorSpec.of(cases[0][1], axis),
            max_batch=max_batch if dynamic else None,
            fidelity=math.nan,
            torch_version=torch.__version__,
            **gpu_record(device),
        )
        with _user_errors(f"{title} as a {backend} engine"):
            engine = chosen.load(payload, manifest, device)
            fidelity = max(relative_rms_error(engine(*case), output) for case, output in cases)
        bar = _bar(module, cases)
        if not fidelity <= bar:
            raise UserError(
                f"{path}: not written: as a {backend} engine {title} has a relative RMS error of {fidelity:.2e}, above "
                f"{bar:.0e}; use another backend or precision"
            )
        manifest = replace(manifest, fidelity=fidelity)
        write_engine_file(path, manifest, payload)
    return manifest


def load_engine(path: str | Path, device: str | torch.device, weights_sha256: str | None = None) -> Engine:
    """Loads an engine file. Neither the module's class nor a compiler is needed.

    Args:
        weights_sha256: `weights_sha256(module)` of the weights that the caller means to run; None accepts any.

    Raises:
        UserError: the file is missing, truncated or altered, or was built from other weights, for another compute
            capability, CPU or backend version, or the backend is not installed, or there is no such device.
    """
    place = parse_device(device)
    manifest = read_manifest(path)
    if manifest.backend not in BACKENDS:
        raise UserError(f"{path}: built with {manifest.backend}, which this version of genreward-fast does not know")
    chosen = BACKENDS[manifest.backend]
    if reason := _why_refused(manifest, chosen, place, weights_sha256):
        raise UserError(f"{path}: {reason}; build it again on this machine")
    with payload_file(path, chosen.suffix) as (verified, payload):
        if verified != manifest:
            raise UserError(f"{path}: replaced while it was being loaded; try again")
        with _user_errors(f"{path}: {chosen.name} cannot load it"):
            return chosen.load(payload, manifest, place)


def relative_rms_error(value: Tensor, reference: Tensor) -> float:
    """RMS(value - reference) / RMS(reference), in float64; infinite where the shapes differ or anything is NaN."""
    if value.shape != reference.shape:
        return math.inf
    wanted = reference.double()
    error = (value.double() - wanted).square().mean().sqrt().item()
    if error == 0:
        return 0.0
    ratio = error / max(wanted.square().mean().sqrt().item(), 1e-300)
    return math.inf if math.isnan(ratio) else ratio


def _why_refused(manifest: Manifest, chosen: Backend, device: torch.device, weights: str | None) -> str | None:
    if weights is not None and weights != manifest.weights_sha256:
        return f"built from other weights (sha256 {manifest.weights_sha256[:12]}…, not {weights[:12]}…)"
    here = _compute_capability(device)
    if here != manifest.compute_capability:
        return f"built for compute capability {manifest.compute_capability}, and {device} is {here}"
    if chosen.version() != manifest.backend_version:
        return f"built with {chosen.name} {manifest.backend_version}, and {chosen.version()} is installed"
    if missing := sorted(set(manifest.cpu_features) - set(cpu_features())):
        return f"built for a CPU with {', '.join(missing)}, which this one lacks"
    return None


def _checked_inputs(
    module: torch.nn.Module, inputs: tuple[Tensor, ...], dynamic_batch: bool, max_batch: int
) -> tuple[Tensor, ...]:
    title = type(module).__name__
    if module.training:
        raise UserError(f"{title} is in training mode; call .eval() before building an engine")
    if not inputs or not all(isinstance(tensor, Tensor) for tensor in inputs):
        raise UserError(f"{title}: the example inputs of an engine are one or more tensors")
    if len({tensor.device for tensor in inputs}) != 1:
        raise UserError(f"{title}: the example inputs lie on several devices; move them to one")
    if dynamic_batch:
        batches = {tensor.shape[0] if tensor.dim() else 0 for tensor in inputs}
        if len(batches) != 1 or not 1 <= min(batches) <= max_batch:
            raise UserError(
                f"{title}: axis 0 of the example inputs is {sorted(batches)}, and must be one batch size from 1 to "
                f"max_batch = {max_batch}"
            )
    return tuple(tensor.detach().contiguous() for tensor in inputs)


def _cases(inputs: tuple[Tensor, ...], dynamic: bool, max_batch: int) -> Iterator[tuple[Tensor, ...]]:
    """The example; for a dynamic batch also one row of it, and one row more than it."""
    yield inputs
    if dynamic:
        batch = inputs[0].shape[0]
        if batch > 1:
            yield tuple(tensor[:1] for tensor in inputs)
        if batch < max_batch:
            yield tuple(torch.cat([tensor, tensor[:1]]) for tensor in inputs)


def _bar(module: torch.nn.Module, cases: list[tuple[tuple[Tensor, ...], Tensor]]) -> float:
    tensors = [*module.parameters(), *module.buffers(), *(t for case, output in cases for t in (*case, output))]
    return HALF_BAR if any(t.dtype in (torch.float16, torch.bfloat16) for t in tensors) else FLOAT32_BAR


@contextlib.contextmanager
def _user_errors(title: str) -> Iterator[None]:
    """Compilers and runtimes raise anything; a user sees the first line of it. The whole error stays its cause."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{title}: {reason}") from error
