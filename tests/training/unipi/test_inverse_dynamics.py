from __future__ import annotations

import json
import shutil
import signal

import pytest
import torch

from genreward_fast.cli import main
from genreward_fast.errors import Interrupted, UserError
from genreward_fast.goals.demos import read_demos
from genreward_fast.training.unipi import fitting
from genreward_fast.training.unipi.fitting import errors, fit_inverse_dynamics
from genreward_fast.training.unipi.inverse_dynamics import RECORD, WEIGHTS, FittedDynamics
from genreward_fast.training.unipi.transitions import Transitions, read_transitions, split


def weights(folder):
    return FittedDynamics.load(folder).network.state_dict()


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_exact_inverse_dynamics_are_learned(toy_fit):
    """Up to the rounding of levels and the compression of the clips, which are a few hundredths of an action."""
    for score in toy_fit.record["held_out"]["errors"]:
        assert score["r_squared"] > 0.97
        assert min(score["r_squared_each"]) > 0.95
    assert [score["gap"] for score in toy_fit.record["held_out"]["errors"]] == [1, 4]
    assert toy_fit.record["held_out"]["clips"] == 1
    assert "R² 0.9" in "\n".join(toy_fit.lines())


def test_on_fresh_pictures_without_compression(toy_fit, toy_play, fresh_generator):
    network = FittedDynamics.load(toy_fit.folder).network
    pictures, actions = toy_play(60, fresh_generator)
    one = torch.ones(60, dtype=torch.int64)
    assert (network.actions(pictures[:-1], pictures[1:], one) - actions).square().mean().sqrt() < 0.12
    mean = (actions[0::3] + actions[1::3] + actions[2::3]) / 3
    answer = network.actions(pictures[:-1:3], pictures[3::3], torch.full((20,), 3))
    assert (answer - mean).square().mean().sqrt() < 0.12
    assert not (network.actions(pictures[1:], pictures[:-1], one) - actions).square().mean().sqrt() < 0.5


def test_pairs_are_of_one_clip_and_mean_their_actions(toy_demos):
    demos = read_demos(toy_demos)[:3]
    transitions = read_transitions(demos, 24, 24)
    assert transitions.frames.shape == (63, 24, 24, 3)
    generator = torch.Generator().manual_seed(0)
    first, gap = transitions.draw(2000, 4, generator)
    assert set(gap.tolist()) == {1, 2, 3, 4}
    assert (first // 21 == (first + gap) // 21).all()
    assert set(first.tolist()) == {index for index in range(63) if index % 21 != 20}
    before, after, mean = transitions.pairs(first, gap)
    for index in range(0, 2000, 100):
        clip, start = divmod(int(first[index]), 21)
        expected = demos[clip].actions()[start : start + int(gap[index])].mean(0)
        torch.testing.assert_close(mean[index], expected)
        assert torch.equal(before[index], transitions.frames[first[index]])
        assert torch.equal(after[index], transitions.frames[first[index] + gap[index]])


def test_errors_are_those_of_the_formula():
    class Zero(torch.nn.Module):
        def actions(self, first, second, gap):
            return torch.zeros(len(first), 2)

    frames = torch.zeros(4, 16, 16, 3, dtype=torch.uint8)
    actions = torch.tensor([[1.0, 0.3], [0.0, 0.3], [-0.4, 0.3]], dtype=torch.float64)
    summed = torch.cat([torch.zeros(1, 2, dtype=torch.float64), actions.cumsum(0)])
    score = errors(Zero(), Transitions(frames, summed, torch.tensor([3, 2, 1, 0])), 1)
    # Squared errors 1 + 0 + 0.16 and three times 0.09; the first varies by 1.04 around its mean 0.2, the second not.
    assert score["r_squared"] == pytest.approx(1 - (1.16 + 0.27) / 1.04, abs=1e-6)
    assert score["r_squared_each"] == [pytest.approx(1 - 1.16 / 1.04, abs=1e-6), None]
    assert score["rms_error"] == pytest.approx(((1.16 + 0.27) / 6) ** 0.5, abs=1e-6)
    assert score["pairs"] == 3


def test_clips_held_out_are_not_fitted_on(toy_demos):
    demos = read_demos(toy_demos)
    fitted, judged = split(demos, 0.25, 0)
    assert len(fitted) == 9
    assert {demo.name for demo in fitted} | {demo.name for demo in judged} == {demo.name for demo in demos}
    assert [demo.name for demo in judged] != [demo.name for demo in split(demos, 0.25, 1)[1]]
    assert [len(part) for part in split(demos[:2], 0.01, 0)] == [1, 1]
    with pytest.raises(UserError, match="only clip"):
        split(demos[:1], 0.1, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_fit_that_was_stopped_becomes_the_same_fit(toy_demos, tmp_path, monkeypatch, toy_config, number):
    whole, stopped = (toy_config(toy_demos, tmp_path / name, steps=30) for name in ("whole", "stopped"))
    fit_inverse_dynamics(whole)
    real, calls = fitting.functional.mse_loss, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 11:
            signal.raise_signal(number)
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(fitting.functional, "mse_loss", stopping)
        with pytest.raises(Interrupted, match="after step 11; the same command with --resume") as caught:
            fit_inverse_dynamics(stopped)
    assert caught.value.exit_code == 128 + number
    assert not (tmp_path / "stopped" / RECORD).exists()
    with pytest.raises(UserError, match="already holds inverse dynamics; go on with --resume"):
        fit_inverse_dynamics(stopped)
    fit_inverse_dynamics(toy_config(toy_demos, tmp_path / "stopped", steps=30, resume=True))
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "stopped"))


def test_resumed_with_something_else(toy_fit, toy_demos, toy_config, tmp_path):
    folder = tmp_path / "fit"
    shutil.copytree(toy_fit.folder, folder)

    def refused(match, data=toy_demos, **changes):
        with pytest.raises(UserError, match=match):
            fit_inverse_dynamics(toy_config(data, folder, resume=True, **changes))

    refused("--lr: .* was begun with lr 0.002, not 0.1", lr=0.1)
    refused("--size: .* was begun with height 24, not 32", height=32)
    refused("--steps 100: .* already at step 400", steps=100)
    shutil.copytree(toy_demos, tmp_path / "fewer")
    lines = (tmp_path / "fewer" / "demos.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "fewer" / "demos.jsonl").write_text("".join(lines[1:]))
    refused("other demonstrations", data=tmp_path / "fewer")
    (folder / "checkpoint.pt").write_bytes(b"cut off")
    refused("damaged")
    (folder / "checkpoint.pt").unlink()
    refused("no checkpoint to go on from")


def test_what_is_saved_is_what_is_loaded(toy_fit, tmp_path):
    fitted = FittedDynamics.load(toy_fit.folder)
    assert fitted.record["tasks"] == {"reach": 20.0}
    assert (fitted.record["camera"], fitted.record["rendering"], fitted.record["size"]) == ("corner", "fast", 24)
    fitted.save(tmp_path / "again")
    assert same(weights(tmp_path / "again"), weights(toy_fit.folder))
    assert (tmp_path / "again" / RECORD).read_text() == (toy_fit.folder / RECORD).read_text()


def test_damaged_inverse_dynamics_are_one_line(toy_fit, tmp_path):
    folder = tmp_path / "fit"

    def refused(match):
        with pytest.raises(UserError, match=match) as caught:
            FittedDynamics.load(folder)
        assert "\n" not in str(caught.value)

    refused("genreward fit inverse-dynamics")
    shutil.copytree(toy_fit.folder, folder)
    (folder / WEIGHTS).write_bytes((toy_fit.folder / WEIGHTS).read_bytes()[:1000])
    refused("damaged")
    (folder / WEIGHTS).unlink()
    refused("no such file")
    record = json.loads((folder / RECORD).read_text())
    for changes in ({"version": 2}, {"network": {"action_size": 0}}, {"network": 3}, {"tasks": [1]}, {"size": "big"}):
        (folder / RECORD).write_text(json.dumps(record | changes))
        refused("is not of inverse dynamics of this version")
    (folder / RECORD).write_text("{")
    refused("not readable as JSON")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--steps", "0"], "--steps 0"),
        (["--lr", "0"], "--lr 0"),
        (["--held-out", "1"], "--held-out 1"),
        (["--size", "24"], "--size 24"),
        (["--size", "8x24"], "height 8"),
        (["--max-gap", "0"], "max gap 0"),
        (["--device", "tpu"], "--device tpu"),
        (["--seed", "-1"], "--seed"),
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--out", "/dev/null"], "/dev/null: is a file"),
        (["--resume"], "no checkpoint"),
    ],
)
def test_bad_flags_are_one_line(toy_demos, tmp_path, capsys, flags, says):
    out = tmp_path / "out"
    assert main(["fit", "inverse-dynamics", "--data", str(toy_demos), "--out", str(out), *flags]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert says in lines[0]
    assert not out.exists()


def test_bad_demonstrations_are_refused_before_anything_is_written(toy_demos, toy_config, tmp_path):
    def refused(match):
        with pytest.raises(UserError, match=match):
            fit_inverse_dynamics(toy_config(tmp_path / "demos", tmp_path / "out"))
        assert not (tmp_path / "out").exists()

    shutil.copytree(toy_demos, tmp_path / "demos")
    path = tmp_path / "demos" / "demos.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]

    def write(change):
        path.write_text("".join(json.dumps(change(index, dict(line))) + "\n" for index, line in enumerate(lines)))

    write(lambda index, line: {key: value for key, value in line.items() if key != "actions"})
    refused("its actions are not recorded")
    write(lambda index, line: line | {"camera": "corner2" if index == 3 else "corner"})
    refused("differ in camera, rendering, size")
    write(lambda index, line: line)
    shutil.copy(tmp_path / "demos" / lines[0]["file"], tmp_path / "demos" / lines[1]["file"])
    (tmp_path / "demos" / lines[1]["actions"]).write_bytes(b"nothing")
    refused(r"reach-0001\.safetensors: damaged")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        fit_inverse_dynamics(toy_config(toy_demos, tmp_path / "out"))
