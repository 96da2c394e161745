"""The loop on the real environment, in small: a run, its folder, resuming it, signals, and what stops it."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from genreward_fast.agent.agent import Agent
from genreward_fast.agent.config import AgentConfig, NetworkSize
from genreward_fast.cli import main
from genreward_fast.config import Overrides, apply, resolve
from genreward_fast.encoders.presets import Encoders
from genreward_fast.errors import TrainingDiverged, UserError
from genreward_fast.goals.expert_goal import goal_from_expert
from genreward_fast.rewards.genreward import GenReward
from genreward_fast.rewards.registry import make_reward
from genreward_fast.rewards.video import VideoReward
from genreward_fast.rewards.windows import WindowCollector
from genreward_fast.training import rollout
from genreward_fast.training.checkpoint import RunLock
from genreward_fast.training.logger import read_metrics
from genreward_fast.training.metrics import Meters
from genreward_fast.training.policy import Policy
from genreward_fast.training.replay import Replay
from genreward_fast.training.settings import RunConfig
from genreward_fast.training.start import start_run
from genreward_fast.training.trainer import Trainer

SMALL = NetworkSize(deter=64, hidden=16, classes=4, depth=2, units=16, stoch=4)


def small_config(**flags) -> RunConfig:
    """Windows of 16 steps in episodes of 32, so that everything happens within a few hundred steps."""
    values = {
        "task": "reach", "device": "cpu", "steps": 260, "envs": 2, "prefill": 100, "train_ratio": 4,
        "episode_length": 32, "window": 16, "interval": 16, "clip_frames": 4, "fb_steps": 180, "release_delay": 16,
        "eval_every": 150, "eval_episodes": 3, "log_every": 2, "checkpoint_minutes": 60.0,
    } | flags  # fmt: skip
    config = apply(resolve("tiny", Overrides()), Overrides(**values))
    agent = dataclasses.replace(config.agent, network=SMALL, batch_size=4, batch_length=8)
    fb = dataclasses.replace(config.reward.fb, hidden=16, batch=16, z_dim=8)
    return dataclasses.replace(config, agent=agent, reward=dataclasses.replace(config.reward, fb=fb))


def trainer_of(config: RunConfig, folder, goal, *, resume: bool = False) -> Trainer:
    reward = make_reward(config.reward, goal, Encoders(config.encoders), 4, "cpu")
    return Trainer(config, folder, reward, resume=resume)


@pytest.fixture(scope="module")
def goal():
    return goal_from_expert("reach", Encoders(resolve("tiny", Overrides()).encoders), frames=8)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, goal):
    """The folder and the summary of a run that went through."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    goal.save(folder.parent / "goal")
    summary = start_run(small_config(), folder, goal=folder.parent / "goal", resume=False)
    return folder, summary


def test_a_run_leaves_everything_behind(finished):
    folder, summary = finished
    names = {path.name for path in folder.iterdir()}
    expected = {"config.json", "metrics.jsonl", "curves.png", "evaluation.mp4", "checkpoint.pt", "summary.json"}
    assert expected | {"goal", "replay", "tensorboard"} <= names
    assert summary.env_steps == 260
    assert summary.updates > 0
    assert summary.notes == ["untrained encoders"]
    assert {"video", "fb", "video_raw", "fb_raw"} <= set(summary.rewards)
    text = "\n".join(summary.lines())
    for words in ("steps/s", "episode return", "success rate", "mean reward: video", "untrained encoders"):
        assert words in text
    assert json.loads((folder / "summary.json").read_text())["env_steps"] == 260
    records = read_metrics(folder)
    assert any("eval/success_low" in record for record in records)
    assert {"loss/dyn", "loss/image", "loss/policy", "loss/repval"} <= {name for r in records for name in r}


def test_fb_pays_nothing_before_it_is_frozen_and_something_after(finished):
    folder, _ = finished
    before = [r["reward/fb"] for r in read_metrics(folder) if "reward/fb" in r and r["step"] < 180]
    after = [r["reward/fb"] for r in read_metrics(folder) if "reward/fb" in r and r["step"] > 200]
    assert before
    assert all(value == 0 for value in before)
    assert any(value != 0 for value in after)


def test_a_policy_loads_in_two_lines(finished):
    policy = Policy.load(finished[0], device="cpu")
    action = policy.act(np.zeros((64, 64, 3), np.uint8))
    assert action.shape == (4,)
    assert (np.abs(action) <= 1).all()
    policy.reset()
    assert policy.act(np.zeros((2, 64, 64, 3), np.uint8)).shape == (2, 4)
    with pytest.raises(UserError, match="uint8"):
        policy.act(np.zeros((32, 32, 3), np.uint8))


def test_eval_command(finished, capsys):
    assert main(["eval", "--run", str(finished[0]), "--episodes", "2", "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["episodes"] == 2
    assert len(result["returns"]) == 2
    assert main(["eval", "--run", str(finished[0]), "--episodes", "2", "--device", "cpu"]) == 0
    assert "95% interval" in capsys.readouterr().out


def test_a_folder_with_a_run_is_not_overwritten(finished, capsys):
    before = (finished[0] / "config.json").read_bytes()
    assert main(["train", "--out", str(finished[0]), "--device", "cpu"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert (finished[0] / "config.json").read_bytes() == before


def test_a_checkpoint_cut_in_half_is_refused(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    content = (run / "checkpoint.pt").read_bytes()
    (run / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    for command in (["train", "--resume", "--out", str(run), "--steps", "400"], ["eval", "--run", str(run)]):
        assert main([*command, "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert "checkpoint.pt: damaged" in error.splitlines()[-1]
        assert "Traceback" not in error
    assert (run / "replay").exists()


def test_a_replay_chunk_that_is_missing_is_named(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    chunk = next((run / "replay").iterdir())
    chunk.unlink()
    assert main(["train", "--resume", "--out", str(run), "--steps", "400", "--device", "cpu"]) == 2
    assert chunk.name in capsys.readouterr().err.splitlines()[-1]


def test_resuming_goes_on_counting(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    before = torch.load(run / "checkpoint.pt", weights_only=True)["counters"]
    config = small_config(steps=330)
    summary = start_run(config, run, goal=None, resume=True)
    assert summary.env_steps == 330
    assert summary.updates > before["updates"]
    assert summary.seconds > before["seconds"]
    steps = [record["step"] for record in read_metrics(run)]
    assert steps == sorted(steps)


def test_the_state_after_loading_is_the_state_that_was_saved(finished, tmp_path, goal):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    with trainer_of(small_config(), run, goal, resume=True) as trainer:
        assert trainer.rollout.env_steps == saved["counters"]["env_steps"]
        assert trainer.counters.updates == saved["counters"]["updates"]
        assert len(trainer.replay) > 0
        first = trainer.replay.sample(4).reward
        state = trainer.agent.state_dict()
    with trainer_of(small_config(), run, goal, resume=True) as again:
        assert torch.equal(again.replay.sample(4).reward, first)
        assert str(again.agent.state_dict()["model"].keys()) == str(state["model"].keys())
        assert all(torch.equal(again.agent.state_dict()["model"][k], v) for k, v in saved["agent"]["model"].items())


def test_the_same_seed_gives_the_same_run(tmp_path, goal):
    goal.save(tmp_path / "goal")
    records = []
    for name in ("a", "b"):
        start_run(small_config(steps=200), tmp_path / name, goal=tmp_path / "goal", resume=False)
        kept = [
            {k: v for k, v in record.items() if not k.startswith("time/")} for record in read_metrics(tmp_path / name)
        ]
        records.append(kept)
    assert records[0] == records[1]


def test_scores_are_read_only_after_waiting_for_them(tmp_path, goal, monkeypatch):
    """Streams mean nothing on a CPU, but the order of handing over, waiting and reading is the same."""
    running, seen = set(), {rollout.REWARD: 0, rollout.FRAME_LEVEL: 0, "read": 0, "windows": 0}

    @contextlib.contextmanager
    def handed_over(name, *tensors):
        assert tensors
        running.add(name)
        seen[name] += 1
        yield

    def read(function):
        def reads(self, *args):
            if self is not trainer.rollout.meters or any(name.startswith("reward/") for name in args[0]):
                assert rollout.REWARD not in running
                seen["read"] += 1
            return function(self, *args)

        return reads

    complete = WindowCollector.complete

    def reads_features(*args):
        assert rollout.FRAME_LEVEL not in running
        seen["windows"] += 1
        return complete(*args)

    monkeypatch.setattr(rollout, "beside", handed_over)
    monkeypatch.setattr(rollout, "join", lambda name, device: running.discard(name))
    monkeypatch.setattr(WindowCollector, "complete", reads_features)
    run = _made(tmp_path)
    with trainer_of(small_config(prefill=10_000, fb_steps=20_000, overlap=True), run, goal) as trainer:
        monkeypatch.setattr(Replay, "relabel", read(Replay.relabel))
        monkeypatch.setattr(Meters, "add", read(Meters.add))
        while trainer.rollout.env_steps < 140:
            trainer.tick()
        trainer.save()
        assert not running  # a checkpoint holds the scores that wait
    assert seen[rollout.REWARD] >= 8  # each window's clip, and its sum
    assert seen[rollout.FRAME_LEVEL] >= 140  # the features of each tick's frames, and putting them into the replay
    assert seen["read"] >= 4
    assert seen["windows"] >= 70


def replayed(folder, goal, device, overlap, steps):
    """Rewards in the replay, the policy's parameters, and the metrics of a run without its summary."""
    folder.mkdir()
    config = small_config(device=device, overlap=overlap)
    reward = make_reward(config.reward, goal, Encoders(config.encoders, device), 4, device)
    with Trainer(config, folder, reward) as trainer:
        while trainer.rollout.env_steps < steps:
            trainer.tick()
        count = int(trainer.replay.index.released.min())
        _, _, rewards = trainer.replay.rows(np.arange(2), np.zeros(2, int), count)
        values = trainer.meters.read() | trainer.rollout.meters.read()
        return rewards.cpu(), trainer.agent.model.flat.buffer.cpu(), values, trainer.replay.draw(8)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_overlap_changes_no_number(device, tmp_path, goal, monkeypatch):
    """With windows, features and FB's updates that take longer than what is beside them, where there are streams."""

    def make_late(owner, name, cycles):
        function = getattr(owner, name)

        def late(self, values):
            if device == "cuda":
                torch.cuda._sleep(cycles)
            return function(self, values)

        monkeypatch.setattr(owner, name, late)

    make_late(VideoReward, "score", 20_000_000)  # some ten milliseconds
    make_late(GenReward, "features", 2_000_000)
    make_late(GenReward, "update", 2_000_000)
    plain = replayed(tmp_path / "plain", goal, device, overlap=False, steps=240)
    beside = replayed(tmp_path / "beside", goal, device, overlap=True, steps=240)
    assert plain[0].shape[1] > 90
    assert (plain[0][:, 1:] != 0).any()
    assert torch.equal(plain[0], beside[0])
    assert torch.equal(plain[1], beside[1])
    assert plain[2] == beside[2]
    assert {"loss/dyn", "reward/video", "reward/fb"} <= set(plain[2])
    np.testing.assert_array_equal(plain[3], beside[3])


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path, goal, monkeypatch):
    run = tmp_path / "run"
    goal.save(tmp_path / "goal")
    plain_update = Agent.update

    def poisoned(self, batch):
        metrics, latents = plain_update(self, batch)
        if self.updates == 12:
            metrics = metrics | {"loss/value": metrics["loss/value"] * float("nan")}
        return metrics, latents

    start_run(small_config(steps=170), run, goal=tmp_path / "goal", resume=False)
    checkpoint = (run / "checkpoint.pt").read_bytes()
    monkeypatch.setattr(Agent, "update", poisoned)
    with pytest.raises(TrainingDiverged, match=r"loss/value is nan at step .*checkpoint\.pt"):
        start_run(small_config(steps=400), run, goal=None, resume=True)
    assert (run / "checkpoint.pt").read_bytes() == checkpoint


def test_two_processes_cannot_train_in_one_folder(finished):
    with RunLock(finished[0]), pytest.raises(UserError, match="another process"):
        start_run(small_config(), finished[0], goal=None, resume=True)


def test_a_run_killed_before_its_first_checkpoint_starts_again_at_step_0(tmp_path, goal, capsys):
    run = tmp_path / "run"
    config = small_config(steps=100_000, eval_every=0)
    process = _start(config, run, goal, tmp_path)
    _wait_for(process, lambda: len(read_metrics(run)) > 0)
    process.kill()
    process.communicate()
    assert not (run / "checkpoint.pt").exists()
    (run / ".checkpoint-cut.pt").write_bytes(b"half")
    assert main(["eval", "--run", str(run), "--device", "cpu"]) == 2
    assert "no checkpoint yet" in capsys.readouterr().err
    assert main(["train", "--resume", "--out", str(run), "--steps", "120", "--eval-episodes", "2"]) == 0
    assert "resuming at step 0" in capsys.readouterr().err
    assert json.loads((run / "summary.json").read_text())["env_steps"] == 120
    steps = [record["step"] for record in read_metrics(run)]
    assert steps == sorted(steps)
    assert not (run / ".checkpoint-cut.pt").exists()


def test_a_run_killed_before_it_began_leaves_a_usable_folder(tmp_path, goal):
    run = _made(tmp_path)
    (run / ".lock").touch()
    (run / ".goal-abc").mkdir()
    (run / ".goal-abc" / "frames.safetensors").write_bytes(b"half")
    goal.save(tmp_path / "goal")
    with pytest.raises(UserError, match="capacity"):  # refused: the folder is as empty as before
        start_run(small_config(replay_capacity=20), run, goal=tmp_path / "goal", resume=False)
    assert {path.name for path in run.iterdir()} <= {".lock"}
    start_run(small_config(steps=110), run, goal=tmp_path / "goal", resume=False)
    assert (run / "summary.json").exists()


@pytest.mark.parametrize("env_reward", ["dense", "sparse", "none"])
def test_what_the_environment_pays(env_reward, tmp_path, goal):
    config = small_config(env_reward=env_reward, steps=150, alpha=0.0, beta=0.0)
    with trainer_of(config, _made(tmp_path), goal) as trainer:
        while trainer.rollout.env_steps < 150:
            trainer.tick()
        reward = trainer.replay.sample(64).reward
        assert {"dense": (reward != 0).any(), "sparse": ((reward == 0) | (reward == 1)).all()}.get(
            env_reward, (reward == 0).all()
        )


def test_rows_are_withheld_relabelled_and_released_at_a_fixed_step(tmp_path, goal):
    """With the environment paying nothing, what is sampled is exactly the generated reward."""
    config = small_config(env_reward="none", steps=1000, use_fb=False, alpha=16.0, prefill=10_000)
    with trainer_of(config, _made(tmp_path), goal) as trainer:
        released = []
        for _ in range(70):
            trainer.tick()
            released.append((trainer.rollout.env_steps, int(trainer.replay.index.released[0])))
        first_release = next(step for step, rows in released if rows)
        # Row 16 closes the first window after 16 steps of each of 2 environments; 16 steps later its rows are free.
        assert first_release == 2 * 16 + 16
        assert next(rows for _, rows in released if rows) == 17
        _, _, reward = trainer.replay.rows(np.array([0]), np.array([0]), 33)
        assert reward[0, 0] == 0  # the reset row
        assert reward[0, 1:17].std() < 1e-6  # r_video / 16 on each row of its window
        assert reward[0, 17:33].std() < 1e-6
        assert abs(float(reward[0, 1]) - float(reward[0, 17])) > 1e-7  # windows differ
        assert 0 < abs(float(reward[0, 1])) <= 1


def test_rows_that_wait_survive_a_resume(tmp_path, goal):
    """A checkpoint in the middle of a window, with another one scored and waiting: nothing of both is lost."""
    run = _made(tmp_path)
    config = small_config(env_reward="none", steps=1000, use_fb=False, alpha=16.0, prefill=10_000, release_delay=24)
    with trainer_of(config, run, goal) as trainer:
        while trainer.rollout.env_steps < 2 * 20:  # row 16 closed a window, which is due at 2 * 16 + 24 steps
            trainer.tick()
        trainer.save()
        written, images = trainer.replay.index.written.copy(), trainer.replay.store.arrays["image"].clone()
        assert trainer.replay.index.released.tolist() == [0, 0]
    with trainer_of(config, run, goal, resume=True) as again:
        assert again.rollout.env_steps == 40
        assert again.replay.index.written.tolist() == written.tolist()
        positions = torch.from_numpy(again.replay.index.positions(np.array([[0], [1]]), np.arange(written[0])[None]))
        assert torch.equal(again.replay.store.arrays["image"][positions], images[positions])
        assert (again.replay.rows(np.arange(2), np.zeros(2, int), 17)[2] == 0).all()
        while again.rollout.env_steps < 40 + 24:
            again.tick()
        assert (again.replay.index.released >= written).all()
        _, _, reward = again.replay.rows(np.arange(2), np.zeros(2, int), int(written[0]))
        assert (reward[:, 1:17] != 0).all()  # the window that waited was paid
        assert (reward[:, 17:] == 0).all()  # the rows of the open one were kept without
        last = again.replay.store.arrays["flags"][positions[:, -1], 1]
        assert last.all()  # and their episode ends with them


def test_a_dead_worker_costs_its_open_episode_only(tmp_path, goal):
    config = small_config(steps=1000, prefill=10_000, fb_steps=20_000)
    with trainer_of(config, _made(tmp_path), goal) as trainer:
        for _ in range(40):
            trainer.tick()
        victim = trainer.envs.pids[0]
        os.kill(victim, signal.SIGKILL)
        for _ in range(60):
            trainer.tick()
        assert trainer.rollout.discarded_episodes == 1
        assert trainer.envs.restarts == 1
        batch = trainer.replay.sample(64)
        # Every episode that was stored is whole, or closed: an is_first always follows an is_last.
        before_first = batch.is_first[:, 1:] & ~batch.is_last[:, :-1]
        assert not before_first.any()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint(number, tmp_path, goal):
    run = tmp_path / "run"
    config = small_config(steps=100_000, eval_every=0)
    process = _start(config, run, goal, tmp_path)
    _wait_for(process, lambda: len(read_metrics(run)) > 2)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number, error
    assert "--resume" in error.splitlines()[-1]
    assert "Traceback" not in error
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert state["counters"]["env_steps"] > 0


@pytest.mark.slow
def test_killed_three_times_it_still_arrives(tmp_path, goal):
    """SIGKILL at random moments; after each, the run goes on from its last checkpoint and ends at the same step."""
    run, rng = tmp_path / "run", np.random.default_rng()
    config = small_config(steps=700, eval_every=0, checkpoint_minutes=0.02)
    lost = []
    for _ in range(3):
        process = _start(config, run, goal, tmp_path)
        done = _steps(run)
        _wait_for(process, lambda done=done: _steps(run) > done)
        time.sleep(float(rng.uniform(0, 2)))
        process.kill()
        process.communicate()
        logged = max(record["step"] for record in read_metrics(run))
        lost.append(logged - _steps(run))
        assert not list(run.glob("**/.checkpoint-*.pt")) or _steps(run) > 0
    process = _start(config, run, goal, tmp_path)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert json.loads((run / "summary.json").read_text())["env_steps"] == 700
    print("steps lost at each kill:", lost)


def _made(folder):
    run = folder / "run"
    run.mkdir()
    return run


def _steps(run) -> int:
    path = run / "checkpoint.pt"
    return torch.load(path, weights_only=True)["counters"]["env_steps"] if path.exists() else 0


def _start(config, run, goal, folder) -> subprocess.Popen:
    """A process that trains like the command does, from a config file."""
    if not (folder / "goal").exists():
        goal.save(folder / "goal")
    config.save(folder / "wanted.json")
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from genreward_fast.errors import Interrupted\n"
        "from genreward_fast.training.settings import RunConfig\n"
        "from genreward_fast.training.start import start_run\n"
        f"run, folder = Path({str(run)!r}), Path({str(folder)!r})\n"
        "resume = (run / 'config.json').exists()\n"
        "try:\n"
        "    start_run(RunConfig.load(folder / 'wanted.json'), run, goal=None if resume else folder / 'goal',\n"
        "              resume=resume)\n"
        "except Interrupted as stop:\n"
        "    print(stop, file=sys.stderr); sys.exit(stop.exit_code)\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def _wait_for(process, condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.1)


def test_agent_of_another_size_is_refused(finished):
    state = torch.load(finished[0] / "checkpoint.pt", weights_only=True)
    other = Agent(AgentConfig(size="tiny", dtype="float32"), 4, "cpu")
    with pytest.raises(UserError):
        other.load_state_dict(state["agent"])
