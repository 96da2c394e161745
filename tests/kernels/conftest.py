"""Ways to run a Triton kernel without a GPU: in Triton's interpreter, and compiled for a given chip."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from genreward_fast.kernels.triton_support import INTERPRETED

TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.uint8: "u8",
    torch.bool: "i1",
    torch.int64: "i64",
    torch.float8_e4m3fn: "fp8e4nv",
}
SHARED_MEMORY_KB = {80: 163, 86: 99, 89: 99, 90: 227, 120: 99}  # that one program may use, by compute capability


@pytest.fixture
def run_interpreted(run_interpreted):
    return partial(run_interpreted, excused="only 0-dimensional arrays can be converted")


@pytest.fixture
def poisoned(monkeypatch):
    """Fills memory from `torch.empty` with NaN, so that what a kernel forgets to write shows."""
    empty = torch.empty

    def poison(*args, **kwargs):
        made = empty(*args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poison)


@pytest.fixture
def compile_for():
    """Compiles a kernel for a compute capability without a GPU; returns the shared memory that it takes, in bytes."""
    triton = pytest.importorskip("triton")
    if INTERPRETED:
        pytest.skip("the interpreter compiles nothing")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    def compile_kernel(
        kernel,
        capability: int,
        signature: dict[str, str],
        constants: dict,
        num_warps: int,
        aligned=(),
        most_kb: int = 99,
    ) -> int:
        """`aligned` names arguments that are multiples of 16, of which a launch tells the compiler; `most_kb` is the
        shared memory for which the configuration is made, by default one for every chip."""
        names = {name: "constexpr" for name in constants} | signature
        source = ASTSource(
            fn=kernel,
            signature={n: names[n] for n in kernel.arg_names},
            constexprs=constants,
            attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
        )
        target = GPUTarget("cuda", capability, 32)
        compiled = triton.compile(source, target=target, options={"num_warps": num_warps})
        assert len(compiled.asm["cubin"]) > 0
        shared = compiled.metadata.shared
        assert shared <= SHARED_MEMORY_KB[capability] * 1024
        assert shared <= most_kb * 1024
        return shared

    return compile_kernel


def relative_rms(value: torch.Tensor, expected: torch.Tensor, of: torch.Tensor | float = 0.0) -> float:
    """Root mean square of the error, relative to that of the expected values.

    A single value may be a small difference of larger ones, whose rounding it shows: `of` is their size (or they), and
    the error is then relative to that where it is more.
    """
    value, expected, of = (torch.as_tensor(x).cpu().double() for x in (value, expected, of))
    scale = torch.maximum(expected.square().mean().sqrt(), of.square().mean().sqrt())
    return ((value - expected).square().mean().sqrt() / scale).item()


@pytest.fixture(name="relative_rms")
def relative_rms_fixture():
    return relative_rms


@pytest.fixture
def rssm_case():
    """Makes weights of the recurrent model's step, and inputs for sequences of B rows and T steps."""
    from genreward_fast.kernels.rssm_step import StepWeights

    def make(batch, steps, deter, hidden, blocks, latents, classes, generator=None, dtype=torch.float32, device="cpu"):
        flat, piece = latents * classes, deter // blocks

        def draw(*shape, scale=1.0, dtype=dtype):
            return (scale * torch.randn(*shape, generator=generator)).to(dtype).to(device)

        def scales(size):
            return draw(size, scale=0.2, dtype=torch.float32) + 1

        weights = StepWeights(
            deter_in=draw(hidden, deter, scale=deter**-0.5),
            deter_bias=draw(hidden, scale=0.3),
            deter_scale=scales(hidden),
            stoch_in=draw(hidden, flat, scale=latents**-0.5),
            stoch_bias=draw(hidden, scale=0.3),
            stoch_scale=scales(hidden),
            hidden=draw(blocks, piece + 3 * hidden, piece, scale=(piece + 3 * hidden) ** -0.5),
            hidden_scale=scales(deter),
            gates=draw(blocks, piece, 3 * piece, scale=2 * piece**-0.5),
            gates_bias=draw(3 * deter, scale=0.5),
            from_deter=draw(hidden, deter + 16, scale=deter**-0.5)[:, :deter],  # the posterior's weight is one matrix
            posterior_scale=scales(hidden),
            logit=draw(flat, hidden, scale=2 * hidden**-0.5),
            logit_bias=draw(flat, scale=0.5),
        )
        index = torch.randint(0, classes, (batch, steps + 1, latents), generator=generator)
        inputs = {
            "deter": draw(batch, deter).tanh(),
            "stoch": torch.nn.functional.one_hot(index[:, 0], classes).flatten(1).to(dtype).to(device),
            "reset": (torch.rand(batch, steps, generator=generator) < 0.3).to(device),
            "action": draw(batch, steps, deter),
            "evidence": draw(batch, steps, hidden),
            "uniform": torch.rand(batch, steps, latents, generator=generator).to(device),
            "index": index[:, 1:].to(device),
        }
        return weights, inputs

    return make


@pytest.fixture
def compile_launches(compile_for, monkeypatch):
    """Compiles what a call would launch, as it would launch it, for a compute capability; it launches nothing.

    The call gets tensors on the device "meta", so that widths cost nothing.
    """
    import triton

    def compile_call(call, modules, capability: int, most_kb: int = 99) -> list[str]:
        launches = []

        class Recorder:
            def __init__(self, kernel):
                self.kernel = kernel

            def __getitem__(self, grid):
                return lambda *args, **options: launches.append((self.kernel, args, options))

        with monkeypatch.context() as patch:
            for module in modules:
                for name, value in list(vars(module).items()):
                    if isinstance(value, triton.JITFunction) and name.startswith("_"):
                        patch.setattr(module, name, Recorder(value))
                if hasattr(module, "launch_options"):
                    patch.setattr(module, "launch_options", lambda device: {"PDL": capability >= 90})
                if hasattr(module, "runs_triton"):
                    patch.setattr(module, "runs_triton", lambda *tensors: True)
            call()
        done = {}
        for kernel, args, options in launches:
            warps = options.pop("num_warps")
            signature, aligned = {}, []
            for name, value in zip(kernel.arg_names, args):
                if isinstance(value, torch.Tensor):
                    signature[name] = f"*{TYPES[value.dtype]}"
                elif hasattr(value, "block_shape"):
                    signature[name] = f"tensordesc<{TYPES[value.base.dtype]}{list(value.block_shape)}>"
                else:
                    signature[name] = "fp32" if isinstance(value, float) else "i32"
                if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
                    aligned.append(name)
            key = (kernel.__name__, str(signature), str(options), warps)
            if key not in done:
                done[key] = compile_for(kernel, capability, signature, options, warps, tuple(aligned), most_kb)
        return sorted({name for name, *_ in done})

    return compile_call
