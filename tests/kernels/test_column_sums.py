from __future__ import annotations

import pytest
import torch

from genreward_fast.kernels import column_sums as module
from genreward_fast.kernels.column_sums import column_sums, column_sums_reference

SHAPES = [(1, 1), (7, 3), (256, 2, 5), (300, 33), (1025, 70), (2500, 1), (5000, 65)]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def made(shape, generator, dtype, device="cpu"):
    return (torch.randn(shape, generator=generator) + 0.3).to(dtype).to(device)


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_a_sum(shape, fresh_generator, relative_rms):
    x = made(shape, fresh_generator, torch.bfloat16)
    found = column_sums_reference(x)
    assert found.dtype == torch.float32
    assert relative_rms(found, x.double().sum(0)) < 1e-5


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("to", [torch.float32, torch.bfloat16])
def test_on_triton_agrees_with_float64(shape, dtype, to, triton_device, poisoned, fresh_generator, relative_rms):
    x = made(shape, fresh_generator, dtype, triton_device)
    found = column_sums(x, to)
    assert found.shape == shape[1:]
    assert found.dtype == to
    assert relative_rms(found.cpu(), x.cpu().double().sum(0)) < LIMITS[to]
    assert torch.equal(found, column_sums(x, to))


def test_on_triton_takes_rows_wherever_they_lie(triton_device, fresh_generator, relative_rms):
    x = made((40, 50), fresh_generator, torch.float32, triton_device)
    for view in (x[:, 3:20], x[::2], x.t(), x[:1].expand(9, -1), x[:, :1]):
        assert relative_rms(column_sums(view).cpu(), view.cpu().double().sum(0)) < 1e-5


def test_on_triton_nan_stays_in_its_column(triton_device, fresh_generator):
    x = made((2100, 20), fresh_generator, torch.float32, triton_device)
    x[2077, 3] = float("nan")
    assert column_sums(x).isnan().nonzero().flatten().tolist() == [3]


def test_without_rows():
    assert column_sums(torch.zeros(0, 5)).tolist() == [0] * 5


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize(("dtype", "to"), [("bf16", "fp32"), ("bf16", "bf16"), ("fp32", "fp32")])
@pytest.mark.parametrize("tile", [(256, 8), (256, 16), (64, 64), (1, 8)])
def test_compiles_for_every_chip(capability, dtype, to, tile, compile_for):
    signature = {"x": f"*{dtype}", "out": f"*{to}"}
    signature |= {name: "i32" for name in ("stride", "rows", "columns", "per_program")}
    compile_for(module._sum, capability, signature, {"ROWS": tile[0], "COLUMNS": tile[1]}, num_warps=4)
