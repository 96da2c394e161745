from __future__ import annotations

import dataclasses

import pytest
import torch

from genreward_fast.kernels import laprop as module
from genreward_fast.kernels.laprop import ALIGN, Follower, Rates, Segments, clip_reference, laprop, laprop_reference
from genreward_fast.kernels.triton_support import INTERPRETED

SIZES = [1, 63, 64, 65, 5000, 7, 130]
KNOWN = Rates(agc=0.3)
UPDATE = (
    dict.fromkeys(("gradient", "parameter", "mu", "nu", "follower", "partial", "norm", "rate", "correction"), "*fp32")
    | {"copy": "*bf16", "follower_copy": "*bf16", "chunks": "*i32", "count": "i32", "follower_start": "i32"}
    | dict.fromkeys(("beta1", "rest1", "beta2", "rest2", "eps", "agc", "agc_min", "follower_rate"), "fp32")
)


def buffer(segments, generator, device, dtype=torch.float32, scale=1.0):
    flat = torch.zeros(segments.total)
    for view in segments.views(flat):
        view.copy_(torch.randn(view.shape, generator=generator) * scale)
    return flat.to(dtype).to(device)


def make(generator, device, dtype=torch.float32, sizes=SIZES):
    """Segments in several chunks, gradients of which some are clipped, and everything that an update changes."""
    segments = Segments.make(sizes, device, chunk=2048)
    gradient = buffer(segments, generator, device, dtype)
    for i, view in enumerate(segments.views(gradient)):
        view.mul_(10.0 ** (1 - 2 * (i % 3)))
    start = segments.starts[-2]
    parameter = buffer(segments, generator, device)
    follower = Follower(start, parameter[start:] + 1, torch.empty(segments.total - start).bfloat16().to(device), 0.02)
    moments = [buffer(segments, generator, device, scale=0.1), buffer(segments, generator, device).abs()]
    copy = torch.full((segments.total,), float("nan"), device=device).bfloat16()
    scalars = [torch.tensor(value, device=device) for value in (-0.01, 0.3)]
    return gradient, parameter, *moments, segments, *scalars, KNOWN, copy, follower


def cloned(arguments):
    """The same arguments in other memory, on the CPU."""

    def clone(value):
        if isinstance(value, torch.Tensor):
            return value.detach().cpu().clone()
        if isinstance(value, Follower):
            return dataclasses.replace(value, values=clone(value.values), copy=clone(value.copy))
        return value

    return [clone(value) for value in arguments]


def exact(gradient, parameter, mu, nu, segments, rate, correction, rates, copy, follower):
    """One tensor after the other in float64: parameter, mu, nu, and the follower's values."""
    gradient, parameter, mu, nu = (value.cpu().double() for value in (gradient, parameter, mu, nu))
    views = [segments.views(value) for value in (gradient, parameter, mu, nu)]
    for g, p, first, second in zip(*views):
        g = g / max(1, g.norm() / (rates.agc * max(rates.agc_min, p.norm())))
        second.copy_(rates.beta2 * second + (1 - rates.beta2) * g * g)
        u = g / ((second / correction.cpu().double()).sqrt() + rates.eps)
        first.copy_(rates.beta1 * first + (1 - rates.beta1) * u)
        p.add_(rate.cpu().double() * first)
    values = follower.values.cpu().double()
    return parameter, mu, nu, values + follower.rate * (parameter[follower.start :] - values)


def check(run, arguments, relative_rms):
    expected, total = exact(*cloned(arguments)), arguments[0].double().norm()
    norm = run(*arguments)
    _, parameter, mu, nu, segments, _, _, _, copy, follower = arguments
    for name, value, wanted in zip(("p", "mu", "nu", "follower"), (parameter, mu, nu, follower.values), expected):
        assert relative_rms(value.cpu(), wanted) < 1e-6, name
    assert float(norm) == pytest.approx(float(total), rel=1e-5)
    for rounded, value in ((copy, parameter), (follower.copy, follower.values)):  # the interpreter rounds towards zero
        assert torch.allclose(rounded.float(), value, rtol=2**-7, atol=0)
    between = torch.ones(segments.total, dtype=torch.bool)
    for view in segments.views(between):
        view.fill_(False)
    for value in (parameter, mu, nu):
        assert not value.cpu()[between].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_is_laprop(dtype, fresh_generator, relative_rms):
    check(laprop_reference, make(fresh_generator, "cpu", dtype), relative_rms)


def test_reference_clips_each_tensor(fresh_generator):
    gradient, parameter, _, _, segments, *_ = make(fresh_generator, "cpu")
    clipped, _ = clip_reference(gradient, parameter, segments, KNOWN)
    sizes = [view.norm() / p.norm() for view, p in zip(segments.views(clipped), segments.views(parameter))]
    assert max(sizes) <= 0.3 * (1 + 1e-5)
    kept = [torch.equal(a, b) for a, b in zip(segments.views(clipped), segments.views(gradient))]
    assert any(kept)
    assert not all(kept)


def test_segments_are_aligned_and_covered():
    segments = Segments.make(SIZES, "cpu", chunk=2048)
    assert all(start % ALIGN == 0 for start in segments.starts)
    chunks = segments.chunks.tolist()
    assert [a[1] for a in chunks[:-1]] == [b[0] for b in chunks[1:]]
    assert chunks[-1][1] * ALIGN == segments.total
    assert all(0 < (end - start) * ALIGN <= 2048 for start, end, _, _ in chunks)
    assert [c[2:] for c in chunks[4:7]] == [[4, 7]] * 3
    assert Segments.make([module.LARGE + 1], "meta").chunk == 4 * module.CHUNK


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_triton_agrees_with_float64(dtype, triton_device, poisoned, fresh_generator, relative_rms):
    check(laprop, make(fresh_generator, triton_device, dtype), relative_rms)


def test_on_triton_without_copies(triton_device, fresh_generator, relative_rms):
    arguments = make(fresh_generator, triton_device)[:-2]
    other = cloned(arguments)
    laprop(*arguments)
    laprop_reference(*other)
    for value, expected in zip(arguments[1:4], other[1:4]):
        assert relative_rms(value.cpu(), expected) < 1e-6


def test_on_triton_gives_the_same_bits(triton_device, fresh_generator):
    arguments = make(fresh_generator, triton_device)
    results = []
    for _ in range(2):
        own = [value.to(triton_device) if isinstance(value, torch.Tensor) else value for value in cloned(arguments)]
        follower = own[-1]
        own[-1] = dataclasses.replace(
            follower, values=follower.values.to(triton_device), copy=follower.copy.to(triton_device)
        )
        results.append([laprop(*own), *own[1:4], own[-1].values])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_on_triton_keeps_denormals(triton_device):
    segments = Segments.make([4], triton_device)
    gradient, parameter, mu, nu = (torch.zeros(64, device=triton_device) for _ in range(4))
    gradient[:4], parameter[:4] = 3e-18, 1.0
    rate, correction = (torch.tensor(value, device=triton_device) for value in (-0.01 / 0.1, 0.001))
    laprop(gradient, parameter, mu, nu, segments, rate, correction, KNOWN)
    assert nu[:4].min() > 0
    # Flushed to zero, ν would make the update 300 times larger.
    assert torch.allclose(parameter[:4].cpu(), torch.full((4,), 1 - 0.01 * 3e-18 / (3e-18 + 1e-20)))


@pytest.mark.parametrize("where", ["gradient", "parameter"])
def test_on_triton_nan_fills_its_tensor_alone(where, triton_device, fresh_generator):
    arguments = make(fresh_generator, triton_device)
    segments, target = arguments[4], arguments[0 if where == "gradient" else 1]
    segments.views(target)[4][4321] = float("nan")
    norm = laprop(*arguments)
    bad = [int(view.isnan().sum()) for view in segments.views(arguments[1])]
    assert bad == [0, 0, 0, 0, 5000, 0, 0]
    assert norm.isnan() == (where == "gradient")


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_compiles_for_every_chip(capability, dtype, compile_for):
    shape = {"CHUNK": 8192, "BLOCK": 2048}
    signature = {"gradient": f"*{dtype}", "parameter": "*fp32", "chunks": "*i32", "partial": "*fp32", "count": "i32"}
    compile_for(module._measure, capability, signature, shape, num_warps=8)
    signature = UPDATE | {"gradient": f"*{dtype}"}
    flags = {"COPY": True, "FOLLOWER": True, "FOLLOWER_COPY": True}
    compile_for(module._update, capability, signature, shape | flags, num_warps=8)
    constants = {"COPY": False, "FOLLOWER": False, "FOLLOWER_COPY": False, "count": 1, "follower_start": 0}
    compile_for(module._update, capability, signature, shape | constants, num_warps=8)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
def test_no_instruction_flushes_denormals():
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {"CHUNK": 8192, "BLOCK": 2048, "COPY": True, "FOLLOWER": True, "FOLLOWER_COPY": True}
    types = UPDATE | {name: "constexpr" for name in constants}
    source = ASTSource(module._update, {n: types[n] for n in module._update.arg_names}, constants)
    for capability in (80, 90, 120):
        ptx = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8}).asm["ptx"]
        assert "sqrt.rn.f32" in ptx
        assert "div.rn.f32" in ptx
        assert ".ftz" not in ptx
