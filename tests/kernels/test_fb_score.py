from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from genreward_fast.kernels import fb_score as module
from genreward_fast.kernels.fb_score import TILINGS, Tiling, fb_score, fb_score_reference, fold, tiling_for

# rows, features, actions, z, hidden, heads
SHAPES = [(1, 5, 1, 3, 7, 1), (17, 33, 4, 6, 65, 2), (40, 64, 2, 8, 32, 3), (3, 384, 4, 64, 160, 2)]
SMALL = (4, 18, 2, 3, 33, 2)
# Several steps of each program, the last one past the end; a program for each step; no tensor cores.
SMALL_TILINGS = [
    Tiling(16, 16, 16, 1),
    Tiling(16, 32, 16, 2),
    Tiling(32, 16, 32, 8),
    Tiling(16, 32, 32, 2, 4, 3, "ieee"),
]


def make_heads(features, actions, z, hidden, heads, generator):
    def affine(outputs, size):
        weight = torch.randn(heads, outputs, size, generator=generator) / size**0.5
        return SimpleNamespace(weight=weight, bias=torch.randn(heads, outputs, generator=generator))

    norm = SimpleNamespace(
        weight=1 + 0.3 * torch.randn(heads, hidden, generator=generator),
        bias=torch.randn(heads, hidden, generator=generator),
        eps=1e-5,
    )
    first = affine(hidden, features + actions + z)
    return SimpleNamespace(first=first, norm=norm, second=affine(hidden, hidden), last=affine(z, hidden))


def inputs(shape, generator):
    rows, features, actions, z, hidden, heads = shape
    network = make_heads(features, actions, z, hidden, heads, generator)
    feature = torch.randn(rows, features, generator=generator)
    action = torch.rand(rows, actions, generator=generator) * 2 - 1
    return network, feature, action, torch.randn(z, generator=generator), torch.randn(z, generator=generator)


def on(device, folded):
    return folded._replace(**{name: value.to(device) for name, value in folded._asdict().items() if name != "eps"})


def score_scale(folded):
    """A score's size if its terms did not cancel."""
    return folded.direction.float().square().sum(dim=1).sqrt().max() + folded.offset.abs().max()


def unfolded(heads, feature, action, z, goal, reduce):
    """F(s, a, z)·B(g) layer by layer with PyTorch's own modules, in float64."""
    scores = []
    for k in range(len(heads.first.weight)):
        layers = []
        for values in (heads.first, heads.second, heads.last):
            outputs, size = values.weight[k].shape
            layer = nn.Linear(size, outputs, dtype=torch.float64)
            layer.load_state_dict({"weight": values.weight[k], "bias": values.bias[k]})
            layers.append(layer)
        norm = nn.LayerNorm(len(heads.norm.weight[k]), eps=heads.norm.eps, dtype=torch.float64)
        norm.load_state_dict({"weight": heads.norm.weight[k], "bias": heads.norm.bias[k]})
        network = nn.Sequential(layers[0], norm, nn.Tanh(), layers[1], nn.ReLU(), layers[2])
        stacked = torch.cat([feature, action, z.expand(len(feature), -1)], dim=1).double()
        scores.append(network(stacked) @ goal.double())
    values = torch.stack(scores)
    return (values.min(dim=0).values if reduce == "min" else values.mean(dim=0)).detach()


@pytest.mark.parametrize("reduce", ["min", "mean"])
@pytest.mark.parametrize("shape", SHAPES)
def test_folding_changes_nothing(shape, reduce, fresh_generator, relative_rms):
    heads, feature, action, z, goal = inputs(shape, fresh_generator)
    expected = unfolded(heads, feature, action, z, goal, reduce)
    folded = fold(heads, z, goal)
    scale = score_scale(folded)
    assert relative_rms(fb_score_reference(feature, action, folded, reduce), expected, scale) < 1e-5
    assert relative_rms(fb_score(feature, action, folded, reduce), expected, scale) < 1e-5


def test_folded_weights_share_no_memory_with_the_network(fresh_generator):
    heads, feature, action, z, goal = inputs(SHAPES[1], fresh_generator)
    folded = fold(heads, z, goal)
    before = fb_score(feature, action, folded)
    for layer in (heads.first, heads.norm, heads.second, heads.last):
        layer.weight.zero_()
        layer.bias.zero_()
    assert torch.equal(fb_score(feature, action, folded), before)


@pytest.mark.parametrize("reduce", ["min", "mean"])
@pytest.mark.parametrize("shape", SHAPES)
def test_on_triton_float32(shape, reduce, triton_device, poisoned, fresh_generator, relative_rms):
    heads, feature, action, z, goal = inputs(shape, fresh_generator)
    expected = unfolded(heads, feature, action, z, goal, reduce)
    folded = fold(heads, z, goal)
    on_device = on(triton_device, folded)
    value = fb_score(feature.to(triton_device), action.to(triton_device), on_device, reduce).cpu()
    assert value.shape == (shape[0],)
    assert value.dtype == torch.float32
    assert relative_rms(value, expected, score_scale(folded)) < 1e-5


@pytest.mark.parametrize("tiling", [tiling for _, tiling in TILINGS] + SMALL_TILINGS, ids=str)
def test_on_triton_any_tiling(tiling, triton_device, poisoned, fresh_generator, relative_rms):
    heads, feature, action, z, goal = inputs((19, 70, 20, 3, 65, 2), fresh_generator)
    folded = fold(heads, z, goal)
    given = feature.to(triton_device), action.to(triton_device), on(triton_device, folded)
    value = fb_score(*given, tiling=tiling)
    assert relative_rms(value, unfolded(heads, feature, action, z, goal, "min"), score_scale(folded)) < 1e-5
    assert torch.equal(fb_score(*given, tiling=tiling), value)


def test_rows_take_the_first_tiling_that_is_made_for_as_many():
    assert [tiling_for(rows) for rows in (1, 16, 17, 256, 257)] == [TILINGS[i][1] for i in (0, 0, 1, -1, -1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_on_triton_bfloat16(shape, triton_device, poisoned, fresh_generator, relative_rms):
    heads, feature, action, z, goal = inputs(shape, fresh_generator)
    feature, action = feature.bfloat16(), action.bfloat16()
    folded = fold(heads, z, goal).to(torch.bfloat16)
    expected = fb_score_reference(feature, action, folded)
    on_device = on(triton_device, folded)
    value = fb_score(feature.to(triton_device), action.to(triton_device), on_device).cpu()
    # An error of the sum is relative to its terms; the score itself may cancel to nearly nothing.
    assert relative_rms(value, expected, score_scale(folded)) < 1e-2


def test_on_triton_takes_features_in_half_precision(triton_device, fresh_generator, relative_rms):
    heads, feature, action, z, goal = inputs(SHAPES[1], fresh_generator)
    folded = fold(heads, z, goal)
    on_device = on(triton_device, folded)
    value = fb_score(feature.half().to(triton_device), action.to(triton_device), on_device).cpu()
    assert relative_rms(value, fb_score_reference(feature.half(), action, folded), score_scale(folded)) < 1e-5


@pytest.mark.parametrize("reduce", ["min", "mean"])
def test_on_triton_nan_is_not_hidden(reduce, triton_device, fresh_generator):
    heads, feature, action, z, goal = inputs(SMALL, fresh_generator)
    folded = fold(heads, z, goal)
    for head in (0, 1):
        offset = folded.offset.clone()
        offset[head] = float("nan")
        bad = folded._replace(offset=offset)
        on_device = on(triton_device, bad)
        assert fb_score(feature.to(triton_device), action.to(triton_device), on_device, reduce).isnan().all()
    on_device = on(triton_device, folded)
    feature[2, 2] = float("nan")
    value = fb_score(feature.to(triton_device), action.to(triton_device), on_device, reduce).cpu()
    assert value.isnan().nonzero().tolist() == [[2]]


def test_in_the_interpreter(run_interpreted):
    run_interpreted(__file__)


def test_no_rows_give_no_scores(fresh_generator):
    heads, feature, action, z, goal = inputs(SHAPES[1], fresh_generator)
    assert fb_score(feature[:0], action[:0], fold(heads, z, goal)).shape == (0,)


def test_wrong_arguments_are_refused(fresh_generator):
    heads, feature, action, z, goal = inputs(SHAPES[1], fresh_generator)
    folded = fold(heads, z, goal)
    with pytest.raises(ValueError, match="are not the 37 inputs of F"):
        fb_score(feature[:, 1:], action, folded)
    with pytest.raises(ValueError, match=r"must be \(M, D\)"):
        fb_score(feature, action[1:], folded)
    with pytest.raises(ValueError, match="reduce must be"):
        fb_score(feature, action, folded, reduce="max")


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_for_every_chip(capability, dtype, compile_launches):
    with torch.device("meta"):
        feature, action, goal = torch.empty(256, 384), torch.empty(256, 4), torch.empty(64)
        network = make_heads(384, 4, 64, 512, 2, None)
    folded = fold(network, goal, goal).to(dtype)

    def call():
        for rows in (16, 256):  # programs of one step, and of several
            fb_score(feature[:rows], action[:rows], folded)

    assert compile_launches(call, [module], capability) == ["_norm", "_product", "_score"]
