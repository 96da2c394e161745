from __future__ import annotations

import wave
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from genreward_fast.errors import UserError
from genreward_fast.goals.video_io import read_video, write_video


def moving_square(length: int = 12, height: int = 64, width: int = 96) -> torch.Tensor:
    """A red square that moves to the right over a green gradient: smooth, so that compression changes little."""
    video = torch.zeros(length, height, width, 3, dtype=torch.uint8)
    video[..., 1] = torch.linspace(40, 200, width).to(torch.uint8)
    for index in range(length):
        video[index, 16:40, 4 * index : 4 * index + 24] = torch.tensor([220, 30, 30], dtype=torch.uint8)
    return video


def test_round_trip(tmp_path: Path) -> None:
    video = moving_square()
    write_video(tmp_path / "a.mp4", video, fps=12.5)
    read, fps = read_video(tmp_path / "a.mp4")
    assert fps == 12.5
    assert read.shape == video.shape
    assert read.dtype == torch.uint8
    assert (read.float() - video.float()).abs().mean() < 4
    # Red stays red: neither the channels nor the frames are swapped.
    for index in range(12):
        middle = read[index, 22:34, 4 * index + 6 : 4 * index + 18].float().mean((0, 1))
        assert (middle - torch.tensor([220.0, 30.0, 30.0])).abs().max() < 12


def test_plays_in_browsers(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_square())
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.frames == 12
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_odd_sides_are_padded(tmp_path: Path) -> None:
    video = moving_square(height=63, width=95)
    write_video(tmp_path / "a.mp4", video)
    read, _ = read_video(tmp_path / "a.mp4")
    assert read.shape == (12, 64, 96, 3)
    assert (read[:, :63, :95].float() - video.float()).abs().mean() < 4
    assert (read[:, 63].float() - read[:, 62].float()).abs().mean() < 4


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", fail)
    with pytest.raises(OSError, match="no space"):
        write_video(path, moving_square())
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]
    assert path.read_bytes() == b"old"


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.mp4"):
        write_video(tmp_path / "a.avi", moving_square())
    with pytest.raises(UserError, match="fps 0"):
        write_video(tmp_path / "a.mp4", moving_square(), fps=0)
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "a.mp4", moving_square().float())
    assert not list(tmp_path.iterdir())


def refused(path: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        read_video(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    refused(tmp_path / "a.mp4", "no such video file")
    refused(tmp_path, "no such video file")


def test_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, moving_square(60))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    refused(path, "damaged")
    path.write_bytes(data[:200])
    refused(path, "damaged|no video")


@pytest.mark.parametrize("content", [b"", b"not a video at all" * 100])
def test_not_a_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    refused(path, "cannot be decoded")


def test_sound_only(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    refused(path, "no video stream")


def test_one_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_square(1))
    refused(tmp_path / "a.mp4", "has 1 frame")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "has 1 frame")


@pytest.mark.parametrize("codec", ["libx264", "libsvtav1"])
def test_parts_of_a_file(tmp_path: Path, codec: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV cannot write {codec}")
    write_with_key_frames(tmp_path / "a.mp4", codec)
    whole, _ = read_video(tmp_path / "a.mp4")
    for start in (0, 1, 7, 11, 12, 13, 24, 47, 58):
        part, fps = read_video(tmp_path / "a.mp4", start=start / 10, length=2)
        assert fps == 10
        assert torch.equal(part, whole[start : start + 2])
    assert len({frame.numpy().tobytes() for frame in whole}) == 60


def test_parts_that_are_not_there(tmp_path: Path) -> None:
    write_with_key_frames(tmp_path / "a.mp4")
    assert len(read_video(tmp_path / "a.mp4", start=5.0)[0]) == 10
    with pytest.raises(UserError, match="only 10 of its 11 frames"):
        read_video(tmp_path / "a.mp4", start=5.0, length=11)
    with pytest.raises(UserError, match="only 0 of its 5 frames"):
        read_video(tmp_path / "a.mp4", start=60.0, length=5)


def write_with_key_frames(path: Path, codec: str = "libx264") -> None:
    """60 different frames at 10 per second, every 12th a key frame, with others between that need a later one."""
    frames = moving_square(60, width=320)
    options = {"libx264": {"keyint_min": "12", "sc_threshold": "0", "bf": "3"}, "libsvtav1": {"svtav1-params": "lp=1"}}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 320, "yuv420p"
        stream.options = {"g": "12", **options[codec]}
        for frame in frames.numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
