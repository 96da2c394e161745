import av
import numpy as np
import pytest
from PIL import Image

from genreward_fast.envs.backgrounds import LONGEST_FILE, PROCEDURAL_LENGTH, find_videos
from genreward_fast.errors import UserError


def save_image(path, value, size=(40, 24)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), value, np.uint8)).save(path)


def save_video(path, values, size=(32, 16)):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = size
        for value in values:
            picture = np.full((size[1], size[0], 3), value, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture
def davis(tmp_path):
    """Nine sequences of two pictures, whose grey level is 20 · (sequence + 1) + picture."""
    for number in range(9):
        for picture in range(2):
            file = tmp_path / f"JPEGImages/480p/seq{number}/{picture:05d}.png"
            save_image(file, 20 * (number + 1) + picture)
    return tmp_path


def levels(videos):
    return [[int(picture[0, 0, 0]) for picture in video(8)] for video in videos]


def test_a_folder_is_divided_by_the_order_of_its_names(davis):
    train, evaluation = find_videos(davis, "train", None), find_videos(davis, "eval", None)
    assert levels(train) == [[20 * n, 20 * n + 1] for n in range(1, 7)]
    assert levels(evaluation) == [[20 * n, 20 * n + 1] for n in range(7, 10)]
    assert levels(find_videos(davis, "train", 4)) == levels(train)[:4]
    assert levels(find_videos(davis, "eval", 8)) == levels(evaluation)  # as many as there are
    assert train[0](8)[0].shape == (8, 8, 3)


def test_daviss_own_lists_divide_it(davis):
    lists = davis / "ImageSets/2017"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("seq8\nseq1\n")
    (lists / "val.txt").write_text("seq0\n")
    for folder in (davis, davis / "JPEGImages", davis / "JPEGImages/480p"):
        assert [each[0] for each in levels(find_videos(folder, "train", None))] == [40, 180]
        assert [each[0] for each in levels(find_videos(folder, "eval", None))] == [20]


def test_files_are_videos_too(tmp_path):
    save_image(tmp_path / "a.jpg", 30)
    save_video(tmp_path / "b.mp4", [0, 120, 240])
    save_image(tmp_path / "c/1.png", 90)
    (tmp_path / "d").mkdir()  # no images: not a video
    (tmp_path / "notes.txt").write_text("not a video")
    (still, moving), (sequence,) = find_videos(tmp_path, "train", None), find_videos(tmp_path, "eval", None)
    assert [len(video(8)) for video in (still, moving, sequence)] == [1, 3, 1]
    assert np.abs(np.array([picture.mean() for picture in moving(8)]) - [0, 120, 240]).max() < 8
    assert abs(still(8)[0].mean() - 30) < 2


def test_of_a_long_file_the_beginning_is_used(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        save_video(tmp_path / name, [100] * (LONGEST_FILE + 5))
    assert len(find_videos(tmp_path, "train", None)[0](2)) == LONGEST_FILE


def test_an_image_is_read_when_it_is_asked_for(davis):
    pictures = find_videos(davis, "train", 1)[0](8)
    (davis / "JPEGImages/480p/seq0/00001.png").write_bytes(b"not a picture")
    assert pictures[0] is pictures[0]
    with pytest.raises(UserError, match=r"00001\.png: cannot be decoded"):
        pictures[1]


def test_procedural_videos_move_and_differ():
    train, evaluation = find_videos(None, "train", None), find_videos(None, "eval", None)
    assert (len(train), len(evaluation), len(find_videos(None, "train", 4))) == (60, 30, 4)
    firsts = [video(16)[0] for video in (*train, *evaluation)]
    assert len({first.tobytes() for first in firsts}) == 90
    pictures = train[3](32)
    assert len(pictures) == PROCEDURAL_LENGTH
    assert np.array_equal(pictures[7], find_videos(None, "train", 4)[3](32)[7])
    changes = [np.abs(pictures[i + 1].astype(int) - pictures[i]).mean() for i in range(-1, PROCEDURAL_LENGTH - 1)]
    assert min(changes) > 0.5
    assert changes[0] < 2 * max(changes[1:])  # from the last to the first as between any two


def test_bad_folders_are_refused_in_one_line(tmp_path, davis):
    with pytest.raises(UserError, match="no such folder"):
        find_videos(tmp_path / "nowhere", "train", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has 0 videos"):
        find_videos(tmp_path / "empty", "train", None)
    with pytest.raises(UserError, match="has 6 videos for training, and this difficulty takes 8"):
        find_videos(davis, "train", 8)
    (tmp_path / "bad").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "bad" / name).write_bytes(b"not a video")
    with pytest.raises(UserError, match=r"a\.mp4: cannot be decoded"):
        find_videos(tmp_path / "bad", "train", None)[0](8)
