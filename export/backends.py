"""The backends by name, and the two calls that everything else uses: `build_engine` and `load_engine`."""

from __future__ import annotations

import contextlib
import errno
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from genreward_fast.errors import UserError, first_line
from genreward_fast.export.aotinductor import AOTInductorBackend
from genreward_fast.export.build_lock import only_builder
from genreward_fast.export.engine import Backend, Engine, Manifest, TensorSpec
from genreward_fast.export.engine_file import file_sha256, payload_file, read_manifest, write_engine_file
from genreward_fast.export.fidelity import Case, bar, batches, relative_rms_error
from genreward_fast.export.machine import compute_capability as capability_of
from genreward_fast.export.machine import cpu_features, gpu_record, parse_device
from genreward_fast.export.onnx_backend import OnnxRuntimeBackend
from genreward_fast.export.onnx_fidelity import onnx_error
from genreward_fast.export.onnx_graph import onnx_sha256
from genreward_fast.export.tensorrt_backend import TensorRTBackend
from genreward_fast.export.weights import weights_sha256

_ALL: tuple[Backend, ...] = (
    AOTInductorBackend(),
    OnnxRuntimeBackend(),
    TensorRTBackend("tensorrt", "tensorrt"),
    TensorRTBackend("tensorrt-rtx", "tensorrt_rtx"),
)
BACKENDS: dict[str, Backend] = {entry.name: entry for entry in _ALL}


def backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        UserError: there is none.
    """
    if name not in BACKENDS:
        raise UserError(f"{name}: no such engine backend; there are {', '.join(BACKENDS)}")
    return BACKENDS[name]


_backend = backend  # below, `backend` is a parameter


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
    keep: bool = False,
) -> Manifest:
    """Builds an engine for the device that `inputs` lie on, compares it with the module, and writes it to `path`.

    If another process is building `path`, waits for it, and takes its engine if that is the one asked for.

    Args:
        module: in evaluation mode; takes tensors, returns one tensor.
        inputs: examples, on the module's device and best of the batch size that will run most. Their values are what
            the comparison uses, so give real or random data, not zeros.
        path: the engine's file; an older one is replaced only by a whole new one.
        dynamic_batch: axis 0 of every input and of the output is a batch of any size up to `max_batch`.
        max_batch: as small as it may be: where a tensor could pass 2^31 elements, kernels use slower 64-bit indices.
        compute_capability: of a GPU that need not be in the machine, "sm_89"; None for the inputs' device. Where it is
            another one, the engine cannot run here: its ONNX graph is compared with the module instead.
        keep: leave the engine that is asked for as it is, if it is there, whoever built it.

    Returns:
        The manifest, with `fidelity` (or `onnx_fidelity`) the largest relative RMS error over the batch sizes tried.

    Raises:
        UserError: the backend is unknown or unavailable or cannot build for that GPU, the module or the inputs do not
            fit the above, the library cannot build it, the disk is full, or the error is above 1e-4 (1e-2 where the
            module or its inputs hold half precision).
    """
    chosen = _backend(backend)
    if reason := chosen.why_unavailable():
        raise UserError(f"engine backend {backend}: {reason}")
    inputs = _checked_inputs(module, inputs, dynamic_batch, max_batch)
    device = parse_device(inputs[0].device)
    here = capability_of(device)
    target = compute_capability or here
    if target != here:
        if re.fullmatch(r"sm_\d+", target) is None:
            raise UserError(f"{target}: not a compute capability; name one as sm_89, which stands for 8.9")
        chosen = chosen.targeting(target)
    axis = 0 if dynamic_batch and max_batch > 1 else None
    cases = _cases(module, inputs, None if axis is None else max_batch)
    wanted = Manifest(
        backend=chosen.name,
        backend_version=chosen.version(),
        weights_sha256=weights_sha256(module),
        payload_sha256="",
        compute_capability=target,
        cpu_features=cpu_features() if chosen.has_host_code else (),
        inputs=tuple(TensorSpec.of(tensor, axis) for tensor in inputs),
        output=TensorSpec.of(cases[0][1], axis),
        max_batch=None if axis is None else max_batch,
        fidelity=None,
        onnx_sha256=None,
        onnx_fidelity=None,
        torch_version=torch.__version__,
        **gpu_record(device),
    )
    path = Path(path)
    with _user_errors(f"{path}: cannot be built"), only_builder(path) as waited:
        built = _same_engine(path, wanted) if waited or keep else None
        return built or _build(module, cases, path, chosen, wanted, device, target == here)


def _build(
    module: torch.nn.Module,
    cases: list[Case],
    path: Path,
    chosen: Backend,
    wanted: Manifest,
    device: torch.device,
    runs_here: bool,
) -> Manifest:
    """Builds, compares and writes what `wanted` describes; gives it completed."""
    title, name = type(module).__name__, chosen.name
    with tempfile.TemporaryDirectory(prefix="genreward-build-") as folder:
        payload = Path(folder) / f"payload{chosen.suffix}"
        with _user_errors(f"{title} cannot be built with {name}"):
            chosen.build(module, cases[0][0], payload, wanted.max_batch is not None, wanted.max_batch or 1)
        manifest = replace(wanted, payload_sha256=file_sha256(payload))
        graph = payload.with_suffix(".onnx")
        if graph.exists():
            manifest = replace(manifest, onnx_sha256=onnx_sha256(graph))
        with _user_errors(f"{title} as a {name} engine"):
            if runs_here:
                engine = chosen.load(payload, manifest, device)
                error = max(relative_rms_error(engine(*batch), output) for batch, output in cases)
                manifest = replace(manifest, fidelity=error)
            else:
                error = onnx_error(graph, module, cases)
                manifest = replace(manifest, onnx_fidelity=error)
        most = bar(module, cases)
        if not error <= most:
            what = f"as a {name} engine" if runs_here else "as an ONNX graph"
            raise UserError(
                f"{path}: not written: {what} {title} has a relative RMS error of {error:.2e}, above {most:.0e}; use "
                "another backend or precision"
            )
        write_engine_file(path, manifest, payload)
    return manifest


def _cases(module: torch.nn.Module, inputs: tuple[Tensor, ...], max_batch: int | None) -> list[Case]:
    """What the engine is compared on, the example first. `max_batch`: None for a fixed batch."""
    title = type(module).__name__
    with _user_errors(f"{title} on the example inputs"), torch.no_grad():
        cases = [(batch, module(*batch)) for batch in batches(inputs, max_batch is not None, max_batch or 1)]
    for batch, output in cases:
        if not isinstance(output, Tensor):
            raise UserError(f"{title} returns a {type(output).__name__}; an engine returns one tensor: wrap the module")
        if max_batch is not None and (output.dim() == 0 or output.shape[0] != batch[0].shape[0]):
            raise UserError(f"axis 0 of the output of {title} is not the batch; build with dynamic_batch=False")
    return cases


def _same_engine(path: Path, wanted: Manifest) -> Manifest | None:
    """The manifest of the engine at `path`, if that is what `wanted` describes."""
    try:
        found = read_manifest(path)
    except UserError:
        return None
    measured = ("payload_sha256", "fidelity", "onnx_sha256", "onnx_fidelity", "gpu_name", "driver", "cuda")
    return found if replace(wanted, **{name: getattr(found, name) for name in measured}) == found else None


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
    with _user_errors(f"{path}: cannot be read"), payload_file(path, chosen.suffix) as (verified, payload):
        if verified != manifest:
            raise UserError(f"{path}: replaced while it was being loaded; try again")
        with _user_errors(f"{path}: {chosen.name} cannot load it"):
            return chosen.load(payload, manifest, place)


def _why_refused(manifest: Manifest, chosen: Backend, device: torch.device, weights: str | None) -> str | None:
    if weights is not None and weights != manifest.weights_sha256:
        return f"built from other weights (sha256 {manifest.weights_sha256[:12]}…, not {weights[:12]}…)"
    here = capability_of(device)
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


@contextlib.contextmanager
def _user_errors(title: str) -> Iterator[None]:
    """Compilers and runtimes raise anything; a user sees the first line of it. The whole error stays its cause."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = first_line(error)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            reason += f"; make room there, or where temporary files go ({tempfile.gettempdir()}, or set TMPDIR)"
        raise UserError(f"{title}: {reason}") from error
