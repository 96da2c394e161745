"""The table of AUCs, on recordings of a coloured square that moves like an expert, half like one, or at random."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from genreward_fast.bench.signal.episodes import TaskEpisodes, episodes_of
from genreward_fast.bench.signal.fitted import FitLimits
from genreward_fast.bench.signal.plan import REWARDS, NewRecordings, Plan, in_rows
from genreward_fast.bench.signal.results import weights_text
from genreward_fast.bench.signal.run import run_signal
from genreward_fast.bench.signal.scoring import episode_returns, learn, ranking
from genreward_fast.cli import main
from genreward_fast.commands.train import train_settings
from genreward_fast.errors import RunFailed, UserError
from genreward_fast.files import read_json, write_json
from genreward_fast.goals.assets.plan import BuildFolder
from genreward_fast.goals.assets.recordings import read_recordings
from genreward_fast.rewards import registry
from genreward_fast.rewards.config import RewardConfig
from genreward_fast.rewards.fixed import FixedReward
from genreward_fast.rewards.roboclip_config import RoboClipConfig
from genreward_fast.types import FrameSpec

TASK, FRAMES, EVERY, SOLVED = "pick-place", 21, 2, 14
CPU = torch.device("cpu")
EPISODES = (
    ("expert", False), ("expert", False), ("half-expert", False), ("random", False),
    ("expert", True), ("expert", True), ("half-expert", True), ("half-expert", True), ("random", True),
    ("random", True),
)  # fmt: skip


def write_recording(path) -> None:
    """An expert's square goes down the diagonal, a half-expert's stops half way, a random one jumps."""
    random = np.random.default_rng(0)
    frames = {size: np.full((len(EPISODES) * FRAMES, size, size, 3), 90, np.uint8) for size in (128, 64)}
    for number, (kind, _) in enumerate(EPISODES):
        for pictures in frames.values():
            pictures[number * FRAMES : (number + 1) * FRAMES] = 60 + 8 * number
        for t in range(FRAMES):
            down = {"expert": t, "half-expert": min(t, FRAMES // 2), "random": random.integers(FRAMES)}[kind] / FRAMES
            for size, pictures in frames.items():
                at = int(down * 3 * size / 4)
                pictures[number * FRAMES + t, at : at + size // 4, at : at + size // 4] = 255
    actions = random.uniform(-1, 1, (len(EPISODES), FRAMES, EVERY, 4)).astype(np.float32)
    actions[:, -1] = 0
    lines = [
        {"kind": kind, "held_out": held, "frames": FRAMES, "solved_from": SOLVED if kind == "expert" else None}
        for kind, held in EPISODES
    ]
    tensors = {f"frames_{size}": pictures for size, pictures in frames.items()}
    tensors["states"] = np.zeros((len(EPISODES) * FRAMES, 39), np.float32)
    tensors["actions"] = actions.reshape(-1, EVERY, 4)
    path.parent.mkdir(parents=True)
    save_file(tensors, path, {"episodes": json.dumps(lines)})


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folder = BuildFolder(tmp_path_factory.mktemp("signal") / "build")
    write_recording(folder.recording(TASK))
    return folder


@pytest.fixture(scope="module")
def episodes(build) -> TaskEpisodes:
    return episodes_of(read_recordings(build, (TASK,), (128, 64), CPU), (TASK,), build.root)[0]


class Brightness(FixedReward):
    """Pays row t (t + 1)·(mean of its small frame) and the sum of its actions; windows do not overlap."""

    def __init__(self, window: int) -> None:
        spec = FrameSpec(window, window, feature_size=32, feature_dim=1, clip_size=16, clip_steps=(0, window - 1))
        super().__init__(spec, {}, "spread", CPU)

    def features(self, frames):
        return frames.float().mean((1, 2, 3), keepdim=False)[:, None]

    def parts(self, window):
        weights = torch.arange(1, window.shape[1] + 1)
        ends = window.clip.float().mean((2, 3, 4)).sum(1, keepdim=True)
        return {"all": window.features[..., 0] * weights + window.action.sum(2) + ends}


def test_aucs_are_the_share_of_pairs_in_order():
    returns = {
        "expert": torch.tensor([3.0, 5.0]), "half-expert": torch.tensor([3.0, 4.0]), "random": torch.tensor([1.0, 3.0]),
    }  # fmt: skip
    # Expert over half: 3 = 3 counts half, 3 < 4, 5 > 3, 5 > 4. Half over random: 3 > 1, 3 = 3, 4 > 1, 4 > 3.
    assert ranking(returns) == {"expert_over_random": 3.5 / 4, "expert_over_half": 2.5 / 4, "half_over_random": 3.5 / 4}


def test_a_return_is_the_sum_over_the_windows_of_the_last_rows(episodes):
    chosen = [*episodes.held_out["expert"], *episodes.held_out["random"]]
    rows, window = 18, 9
    returns = episode_returns(Brightness(window), episodes, chosen, rows)
    recordings, expected = episodes.recordings, []
    assert recordings.actions.shape == (len(EPISODES) * FRAMES, EVERY, 4)
    for episode in chosen:
        paid = 0.0
        for row in range(rows):
            at = episode.start + FRAMES - 1 - rows + row  # the last frame has no action
            paid += (row % window + 1) * episodes.frames(torch.tensor([at]), 32).float().mean().item()
            paid += recordings.actions[at].sum().item()
            if row % window in (0, window - 1):
                paid += window * episodes.frames(torch.tensor([at]), 16).float().mean().item()
        expected.append(paid)
    torch.testing.assert_close(returns, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)
    with pytest.raises(UserError, match="none ever closes"):
        episode_returns(Brightness(19), episodes, chosen, rows)


def test_rewards_without_a_number_are_refused(episodes):
    reward = Brightness(9)
    reward.features = lambda frames: torch.full((len(frames), 1), torch.nan)
    with pytest.raises(RunFailed, match="not finite"):
        episode_returns(reward, episodes, episodes.held_out["expert"], 9)


def test_what_learns_sees_the_training_episodes_alone_and_is_frozen(episodes):
    class Learning(Brightness):
        frozen, seen = False, ()

        def update(self, batch):
            self.seen = (*self.seen, batch)
            return {}

        def freeze(self, batches):
            self.frozen = bool(list(batches))
            return {}

    reward = Learning(9)
    learn(reward, episodes, 3, 3000, 0)
    assert reward.frozen
    assert len(reward.seen) == 3
    trained = [e for e in episodes.recordings.episodes if not e.held_out]
    rows = torch.cat([torch.arange(e.start, e.start + FRAMES - 1) for e in trained])
    known = episodes.actions(rows)
    drawn = reward.seen[0].action
    assert drawn.shape == (3000, 2, EVERY * 4)
    place = (drawn[:, :, None] == known).all(-1).int().argmax(-1)
    torch.testing.assert_close(known[place], drawn)
    assert torch.equal(place[:, 1], place[:, 0] + 1)
    assert len(place[:, 0].unique()) == len(trained) * (FRAMES - 2)  # so many draws find all 76 pairs


def test_the_goal_is_a_training_expert_up_to_its_success(episodes):
    goal = episodes.demonstrated_goal()
    first = episodes.recordings.frames[128]
    assert torch.equal(goal.video[0], first[0])
    assert torch.equal(goal.frame(128), first[SOLVED])
    failed = [dataclasses.replace(e, solved_from=None) for e in episodes.training]
    with pytest.raises(UserError, match="no training expert succeeds"):
        dataclasses.replace(episodes, training=tuple(failed)).demonstrated_goal()


def test_windows_cover_as_many_steps_with_fewer_rows():
    config = in_rows(RewardConfig(name="roboclip"), 2, 200)
    assert (config.window, config.interval, config.roboclip.every) == (64, 64, 2)
    config = in_rows(RewardConfig(interval=8, roboclip=RoboClipConfig(every=4)), 1, 100)
    assert (config.window, config.interval, config.roboclip.every) == (100, 8, 4)
    assert config.diffusion.exploration == config.viper.exploration == 0


def test_every_reward_is_measured_unless_it_pays_nothing():
    assert {reward.split(":")[0] for reward in REWARDS} == set(registry.REWARDS) - {"none"}


@pytest.fixture(scope="module")
def measured(build, tmp_path_factory):
    """The plan of a small table, the results, and the lines that were said."""
    out = tmp_path_factory.mktemp("measured")
    rewards = ("roboclip", "genreward", "genreward:no-fb", "genreward:no-video", "viper")
    limits = FitLimits(steps=2)
    plan = Plan(rewards, (TASK,), out / "out", build.root, fb_updates=4, limits=limits, device="cpu")
    said: list[str] = []
    results = run_signal(plan, train_settings, copy=out / "copy.json", say=said.append)
    return plan, results, said


def test_a_table_of_rewards_and_one_that_has_no_weights(measured):
    plan, results, said = measured
    values = read_json(plan.out / "signal.json")
    assert values == read_json(plan.out.parent / "copy.json") == results.values
    for name in ("genreward", "genreward:no-fb", "genreward:no-video", "viper"):
        entry = values["rewards"][name]
        figures = entry["tasks"][TASK]
        returns = {kind: torch.tensor(paid) for kind, paid in figures["returns"].items()}
        assert [len(paid) for paid in returns.values()] == [2, 2, 2]
        assert len(torch.cat(list(returns.values())).unique()) == 6
        assert ranking(returns) == entry["mean"] == {key: figures[key] for key in entry["mean"]}
    assert values["rewards"]["genreward"]["weights"].endswith("; updates: FB 4")
    assert values["rewards"]["viper"]["weights"] == "fitted; updates: codec 2, model 2"
    assert "needs the weights of S3D" in values["rewards"]["roboclip"]["error"]
    assert sum("not measured" in line for line in said) == 1
    assert values["tasks"][TASK]["rows"] == FRAMES - 1
    lines = results.lines()
    assert len(lines) == 6
    assert "not measured: --reward roboclip" in lines[1]
    assert (plan.out / "signal.png").stat().st_size > 5000


def test_the_levels_of_genreward_add_up(measured):
    rewards = measured[1].values["rewards"]
    names = ("genreward", "genreward:no-fb", "genreward:no-video")
    whole, video, frame = (
        torch.tensor(list(rewards[name]["tasks"][TASK]["returns"].values()), dtype=torch.float64) for name in names
    )
    assert frame.std() > 1e-3
    torch.testing.assert_close(whole, video + frame, rtol=0, atol=1e-4 * float(whole.abs().max()))


def test_weights_are_those_of_all_tasks():
    tasks = [{"weights": "fitted", "updates": {"codec": n, "model": 7}} for n in (30, 10, 20)]
    assert weights_text(tasks) == "fitted; updates: codec 10 to 30, model 7"
    assert weights_text([{"weights": "trained", "updates": {}}]) == "trained"


def test_fits_read_the_training_experts_alone(measured):
    plan, _, _ = measured
    record = read_json(plan.out / "fitted" / "viper" / TASK / "fit.json")
    assert [clip["frames"] for clip in record["clips"]] == [FRAMES, FRAMES]
    assert record["steps"] == 2


@pytest.mark.gpu
def test_a_table_on_a_gpu(build, tmp_path):
    rewards = ("genreward", "diffusion-reward", "viper", "tadpole")
    plan = Plan(rewards, (TASK,), tmp_path, build.root, fb_updates=4, limits=FitLimits(steps=4), device="cuda")
    values = run_signal(plan, train_settings, say=lambda line: None).values["rewards"]
    assert {name: entry.get("error") for name, entry in values.items()} == dict.fromkeys(rewards)
    for entry in values.values():
        assert torch.tensor(list(entry["tasks"][TASK]["returns"].values())).isfinite().all()


def test_a_resumed_table_measures_what_is_missing(measured, monkeypatch):
    plan, results, _ = measured
    values = read_json(plan.out / "signal.json")
    del values["rewards"]["viper"]
    values["rewards"]["genreward"]["tasks"][TASK]["expert_over_half"] = 0.25
    write_json(plan.out / "signal.json", values)
    again = run_signal(plan, train_settings, resume=True, say=lambda line: None).values["rewards"]
    assert again["genreward"]["tasks"][TASK]["expert_over_half"] == 0.25
    before = results.values["rewards"]["viper"]["tasks"][TASK]["returns"]
    assert again["viper"]["tasks"][TASK]["returns"] == before
    with pytest.raises(UserError, match="is there already"):
        run_signal(plan, train_settings)
    with pytest.raises(UserError, match="begun with fb_updates 4, not 5"):
        run_signal(dataclasses.replace(plan, fb_updates=5), train_settings, resume=True)


def test_bad_input_is_one_line(build, tmp_path, capsys):
    def said(*arguments: str) -> str:
        assert main(["signal", "--out", str(tmp_path / "out"), *arguments]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    data = ("--data", str(build.root), "--tasks", TASK)
    assert "either --data" in said()
    assert "either --data" in said(*data, "--record", "3")
    assert "--reward telepathy: unknown" in said(*data, "--rewards", "viper,telepathy")
    assert "pays nothing" in said(*data, "--rewards", "none")
    assert "leave it out after the --" in said(*data, "--", "--seed", "3")
    assert "default settings" in said(*data, "--rewards", "genreward", "--", "--camera", "topview")
    assert "must be at least 1" in said("--record", "0")
    assert "--after -1: must not be negative" in said("--record", "1", "--after", "-1")
    assert "is kept out of all training" in said("--record", "1", "--tasks", "drawer-open", "--rewards", "viper")
    assert "--fit-minutes 0.0: both must be positive" in said(*data, "--fit-minutes", "0")
    assert "--fb-updates 0" in said(*data, "--fb-updates", "0")
    assert "no such goal folder" in said(*data, "--goals", str(tmp_path))
    assert not (tmp_path / "out").exists()


def test_recordings_without_actions_or_a_kind_are_refused(build, tmp_path):
    folder = BuildFolder(tmp_path)
    tensors = load_file(build.recording(TASK))
    folder.recording(TASK).parent.mkdir()
    arrays = {name: tensor.numpy() for name, tensor in tensors.items() if name != "actions"}
    lines = [{"kind": "expert", "held_out": True, "frames": 210, "solved_from": None}]
    save_file(arrays, folder.recording(TASK), {"episodes": json.dumps(lines)})
    with pytest.raises(UserError, match="no actions"):
        episodes_of(read_recordings(folder, (TASK,), (64,), CPU), (TASK,), tmp_path)
    save_file(arrays | {"actions": tensors["actions"].numpy()}, folder.recording(TASK), {"episodes": json.dumps(lines)})
    with pytest.raises(UserError, match="no held-out half-expert episode"):
        episodes_of(read_recordings(folder, (TASK,), (64,), CPU), (TASK,), tmp_path)


def test_new_recordings_last_as_long_as_an_agents_episode():
    config = NewRecordings(3, training=5).config((TASK, "reach"), (128, 64), 7)
    assert config.counts(TASK) == config.counts("reach") == ((5, 3), (3, 3), (3, 3))
    assert (config.after, config.random_steps, config.every, config.seed) == (256, 256, 1, 7)
    assert NewRecordings(3, after=24).config((TASK,), (64,), 0).after == 24
