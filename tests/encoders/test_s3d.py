"""S3D of HowTo100M and of torchvision: the network against published values, files, clips and sentences."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.video import s3d

from genreward_fast.encoders import s3d as encoders_s3d
from genreward_fast.encoders.s3d import KineticsS3D, S3DEncoder
from genreward_fast.encoders.s3d_network import TextVideoS3D, same_pool, space_to_depth
from genreward_fast.encoders.s3d_weights import random_s3d, read_s3d
from genreward_fast.errors import UserError

# What the code published with the paper (github.com/antoine77340/S3D_HowTo100M) gives with the weights of `fill` for
# `clip` and the words 3, 1, 2.
PUBLISHED_VIDEO = [0.004831, 0.033415, -0.024468, 0.134202, 0.00708, -0.048483, 0.15063, 0.047173]
PUBLISHED_TEXT = [-2.74738, -0.380466, 3.548556, 0.484149, -2.752255, -1.889739, 3.767716, 0.615326]


def fill(module: nn.Module) -> None:
    """Weights from `scattered`, tensors in the order of their names, which keep a signal's size in the network."""
    for number, (name, tensor) in enumerate(sorted(module.state_dict().items())):
        if not tensor.is_floating_point():
            continue
        values = scattered(tensor.numel(), number).view(tensor.shape)
        if name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.copy_(1 + 0.3 * values)
        elif tensor.ndim == 1:
            tensor.copy_(0.1 * values)
        else:
            tensor.copy_(3 * values / tensor[0].numel() ** 0.5)


def scattered(count: int, number: int) -> Tensor:
    """(count,) float64 in [-1, 1), computed in integers: the same with every version of the libraries."""
    index = torch.arange(count) + 10_000 * (number + 1)  # squares of small numbers are not scattered yet
    return index * index * 48271 % 2147483647 / 2**30 - 1


def clip() -> Tensor:
    """(1, 3, 4, 34, 34) in [0, 1)."""
    return (0.5 + 0.5 * scattered(3 * 4 * 34 * 34, 0)).view(1, 3, 4, 34, 34).float()


def small_network() -> TextVideoS3D:
    network = TextVideoS3D(dim=8, words=20, word_dim=5, text_hidden=7)
    fill(network)
    return network.eval()


def same(found: Tensor, expected: Tensor) -> bool:
    """These weights carry rounding errors of 1e-7 to 5e-7."""
    return bool((found - expected).norm() < 1e-4 * expected.norm())


@pytest.fixture
def saved(tmp_path):
    """A folder with small weights under the paper's names, and their vocabulary."""
    torch.save(small_network().state_dict(), tmp_path / "s3d_howto100m.pth")
    np.save(tmp_path / "s3d_dict.npy", np.array(["red", "ball", "the"]))
    return tmp_path


def test_it_computes_what_the_published_code_does():
    network = small_network()
    with torch.no_grad():
        video, text = network(clip()), network.text_module(torch.tensor([[3, 1, 2] + [0] * 13]))
        other = network(clip().flip(2))
    assert same(video, torch.tensor([PUBLISHED_VIDEO]))
    assert same(text, torch.tensor([PUBLISHED_TEXT]))
    assert (other - video).norm() > 0.01 * video.norm()  # the same frames in another order


def test_space_to_depth_against_its_definition(fresh_generator):
    pixels = torch.rand(2, 3, 4, 6, 2, generator=fresh_generator)
    blocks = space_to_depth(pixels)
    assert blocks.shape == (2, 24, 2, 3, 1)
    for t, y, x in ((0, 0, 0), (1, 0, 1), (1, 1, 0)):
        for colour in range(3):
            channel = 12 * t + 6 * y + 3 * x + colour
            torch.testing.assert_close(blocks[:, channel], pixels[:, colour, t::2, y::2, x::2])


def test_pooling_pads_behind(fresh_generator):
    x = torch.rand(1, 1, 5, 4, 4, generator=fresh_generator) - 2  # below the padding's zeros
    pooled = same_pool(x, (3, 3, 3), (2, 2, 2))
    assert pooled.shape == (1, 1, 3, 2, 2)
    assert pooled[0, 0, 0, 0, 0] == x[0, 0, :3, :3, :3].max()
    assert pooled[0, 0, 0, 1, 0] == 0  # its rows 2 and 3, and one of zeros


def test_torchvisions_features_are_what_its_classifier_sees(fresh_generator):
    torch.manual_seed(int(torch.randint(2**31, (), generator=fresh_generator)))
    model = s3d(num_classes=3).eval()
    frames = torch.randint(0, 256, (1, 16, 224, 224, 3), dtype=torch.uint8, generator=fresh_generator)
    mean, std = torch.tensor([0.43216, 0.394666, 0.37645]), torch.tensor([0.22803, 0.22145, 0.216989])
    with torch.no_grad():
        classes = model(((frames / 255 - mean) / std).permute(0, 4, 1, 2, 3))
    vector = S3DEncoder(KineticsS3D(model))(frames)
    assert vector.shape == (1, 1024)
    last = model.classifier[1]
    torch.testing.assert_close(
        functional.linear(vector, last.weight.flatten(1), last.bias), classes, rtol=1e-4, atol=1e-5
    )


def test_weights_of_the_paper_from_a_folder_or_a_file(saved, monkeypatch, fresh_generator):
    frames = torch.randint(0, 256, (2, 4, 32, 32, 3), dtype=torch.uint8, generator=fresh_generator)
    network, vocabulary = read_s3d(str(saved))
    assert vocabulary == {"red": 1, "ball": 2, "the": 3}
    monkeypatch.setattr(encoders_s3d, "_CLIPS", 1)
    encoder = S3DEncoder(network, size=32, vocabulary=vocabulary)
    with torch.no_grad():
        expected = small_network()(frames.permute(0, 4, 1, 2, 3) / 255)
    assert same(encoder(frames), expected)
    again = S3DEncoder(read_s3d(str(saved / "s3d_howto100m.pth"))[0], size=32)
    assert again.fingerprint == encoder.fingerprint
    bytes_ = S3DEncoder(network, size=32, byte_pixels=True)
    assert torch.equal(bytes_.preprocess(frames), frames.permute(0, 4, 1, 2, 3).float())
    assert bytes_.fingerprint != encoder.fingerprint


def test_sentences(saved):
    network, vocabulary = read_s3d(str(saved))
    encoder = S3DEncoder(network, size=32, vocabulary=vocabulary)
    assert same(encoder.text("The RED, ball!"), torch.tensor(PUBLISHED_TEXT))
    torch.testing.assert_close(encoder.text("the red lively ball"), encoder.text("the red ball"))
    torch.testing.assert_close(encoder.text("ball " * 30 + "red"), encoder.text("ball " * 16))
    with pytest.raises(UserError, match="none of these words"):
        encoder.text("zebra")
    (saved / "s3d_dict.npy").unlink()
    for model in (read_s3d(str(saved))[0], random_s3d(0)):
        with pytest.raises(UserError, match="with its vocabulary"):
            S3DEncoder(model, size=32).text("ball")


def test_weights_of_torchvision(tmp_path):
    torch.manual_seed(0)
    model = s3d(num_classes=5)
    torch.save(model.state_dict(), tmp_path / "s3d.pth")
    network, vocabulary = read_s3d(str(tmp_path / "s3d.pth"))
    assert isinstance(network, KineticsS3D)
    assert vocabulary is None
    assert S3DEncoder(network).fingerprint == S3DEncoder(KineticsS3D(model)).fingerprint


def test_clips_that_do_not_fit_are_refused():
    paper, kinetics = S3DEncoder(small_network(), size=32), S3DEncoder(random_s3d(0), size=32)
    for encoder, shape, words in (
        (paper, (1, 4, 30, 32, 3), "clips must be"),
        (paper, (1, 3, 32, 32, 3), "even number"),
        (paper, (1, 1, 32, 32, 3), "at least 2"),
        (kinetics, (1, 4, 32, 32, 3), "at least 5"),
    ):
        with pytest.raises(ValueError, match=words):
            encoder(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(UserError, match="byte-pixels"):
        S3DEncoder(random_s3d(0), byte_pixels=True)


def test_bad_files_are_named(saved, tmp_path):
    state = torch.load(saved / "s3d_howto100m.pth", weights_only=True)
    cases = {
        "missing.pth": ({name: tensor for name, tensor in state.items() if name != "fc.bias"}, "1 missing .* fc.bias"),
        "foreign.pth": (state | {"more": torch.zeros(1)}, "1 foreign .* more"),
        "shape.pth": (state | {"fc.weight": torch.zeros(8, 3)}, "1 misshaped .* fc.weight"),
        "other.pth": ({"weight": torch.zeros(1)}, "neither the S3D of the paper nor torchvision's"),
        "list.pth": ([1, 2], "no state dict"),
        "class.pth": (fill, "not usable as S3D"),  # would have to be unpickled
    }
    for name, (content, words) in cases.items():
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=rf"{name}: .*{words}"):
            read_s3d(str(tmp_path / name))
    with pytest.raises(UserError, match="7 checkpoints"):
        read_s3d(str(tmp_path))
    with pytest.raises(UserError, match="nowhere: no such file"):
        read_s3d("nowhere")
    for words in (np.array([["red"]]), np.arange(3), np.array(["word"] * 20)):
        np.save(saved / "s3d_dict.npy", words)
        with pytest.raises(UserError, match=r"s3d_dict\.npy"):
            read_s3d(str(saved / "s3d_howto100m.pth"))
    (saved / "s3d_dict.npy").write_bytes(b"words")
    with pytest.raises(UserError, match="not an array of words"):
        read_s3d(str(saved / "s3d_howto100m.pth"))
