from __future__ import annotations

import csv
import json
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from genreward_fast.cli import main
from genreward_fast.config import Overrides, resolve
from genreward_fast.errors import UserError
from genreward_fast.training.report import scores
from genreward_fast.training.report.build import build_report
from genreward_fast.training.report.methods import by_method
from genreward_fast.training.report.runs import read_runs


@pytest.fixture(autouse=True)
def few_repetitions(monkeypatch):
    monkeypatch.setattr(scores, "REPETITIONS", 40)


@pytest.fixture
def make_run(tmp_path):
    """A run folder as training leaves it: {step: success} of its evaluations, with 100 times that as return."""

    def make(name, evaluations, *, finished=True, notes=(), last=None, success_defined=True, **flags):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        resolve("tiny", Overrides(**flags)).save(folder / "config.json")
        records = [{"step": 0, "notes": list(notes)}] if notes else []
        for step in range(500, (last or max(evaluations)) + 1, 500):
            records.append({"step": step, "episode/return": step / 10, "episode/success": step >= 1000})
            records.append({"step": step, "reward/video": 0.1, "env/dense_reward": 0.5, "time/seconds": step / 20})
        for step, success in evaluations.items():
            records.append({"step": step, "eval/success": success, "eval/return_mean": 100 * success})
        if not success_defined:
            records = [{k: v for k, v in record.items() if "success" not in k} for record in records]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        if finished:
            (folder / "summary.json").write_text(json.dumps({"seconds": 200.0, "device": "a GPU"}))
        return folder

    return make


class References(HTMLParser):
    """Everything that a page would load, and the text of its cells."""

    def __init__(self, text):
        super().__init__()
        self.urls, self.tags, self.cells = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.urls += [value for name, value in attrs if name in ("src", "href", "poster")]
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_figures_pictures_and_page(make_run, tmp_path, capsys):
    for seed, success in enumerate((0.2, 0.4, 0.9)):
        make_run(f"ours-{seed}", {1000: success / 2, 2000: success}, seed=seed, notes=["untrained encoders"])
    for seed, success in enumerate((0.1, 0.3)):
        make_run(f"dense-{seed}", {1000: 0.0, 2000: success}, seed=seed, reward="none")
    out = tmp_path / "report"
    assert main(["report", str(tmp_path / "runs"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "50% [" in printed
    assert "untrained encoders (ours-0, ours-1, ours-2)" in printed

    results = {row["method"]: row for row in read_csv(out / "results.csv")}
    assert set(results) == {"dense + genreward", "dense"}
    ours, dense = results["dense + genreward"], results["dense"]
    assert (float(ours["success"]), float(ours["return"])) == pytest.approx((0.5, 50))
    assert (float(dense["success"]), int(dense["seeds"])) == (pytest.approx(0.2), 2)
    for row in (ours, dense):
        assert row["step"] == "2000"
        assert float(row["success_low"]) < float(row["success"]) < float(row["success_high"])
    assert 0.2 <= float(ours["success_low"]) <= float(ours["success_high"]) <= 0.9

    runs = {row["run"].rpartition("/")[2]: row for row in read_csv(out / "runs.csv")}
    assert runs["ours-2"]["success"] == "90%"
    assert (runs["ours-2"]["wall time"], runs["ours-2"]["steps/s"], runs["ours-2"]["state"]) == (
        "3:20",
        "10.0",
        "finished",
    )
    curve = [
        row for row in read_csv(out / "curves.csv") if row["metric"] == "episode/return" and row["method"] == "dense"
    ]
    # The mean over all episodes until then: 50, 75, 100, 125 after 500, 1000, 1500, 2000 steps.
    assert float(curve[0]["mean"]) == 50
    assert float(curve[-1]["mean"]) == 125
    assert float(curve[len(curve) // 2]["mean"]) in (75, 100)

    page = References((out / "report.html").read_text())
    assert page.urls
    assert all(url.startswith("data:image/png;base64,") for url in page.urls)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert any("50%" in cell for cell in page.cells)
    for name in ("overall", "curves-pick-place", "rewards-pick-place"):
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_different_length_are_compared_where_all_have_been(make_run, tmp_path):
    make_run("short", {1000: 0.1, 2000: 0.2}, seed=0)
    make_run("long", {1000: 0.3, 2000: 0.4, 3000: 0.9}, seed=1)
    make_run("new", {}, seed=2, last=500, finished=False)
    report = build_report([tmp_path / "runs"], tmp_path / "out")
    (cell,) = report.cells
    assert (cell.step, cell.success.seeds) == (2000, 2)
    assert cell.success.value == pytest.approx(0.3)
    assert any("compared at step 2000" in note and "long" in note for note in report.notes)
    assert any("not evaluated yet (step 500 of 6000)" in note and "new" in note for note in report.notes)
    states = {row["run"].rpartition("/")[2]: row["state"] for row in read_csv(tmp_path / "out" / "runs.csv")}
    assert states == {"short": "finished", "long": "finished", "new": "at 8%"}


def test_where_success_is_not_defined_returns_are_compared(make_run, tmp_path, capsys):
    options = {"success_defined": False, "task": "walker-walk"}
    for seed, score in enumerate((2.0, 4.0)):
        make_run(f"ours-{seed}", {1000: score}, seed=seed, **options)
        make_run(f"dense-{seed}", {1000: score / 4}, seed=seed, reward="none", **options)
    # Its action repeat is another one, which does not make it another method.
    make_run("other-task", {1000: 3.0}, success_defined=False, task="cartpole-swingup", reward="none")
    report = build_report([tmp_path / "runs"], tmp_path / "out")
    assert [(cell.task, cell.method, cell.success, cell.returns.value) for cell in report.cells] == [
        ("cartpole-swingup", "dense", None, pytest.approx(300)),
        ("walker-walk", "dense", None, pytest.approx(75)),
        ("walker-walk", "dense + genreward", None, pytest.approx(300)),
    ]
    assert "–" in report.lines()[1]
    assert not (tmp_path / "out" / "overall.png").exists()
    rows = read_csv(tmp_path / "out" / "results.csv")
    assert {(row["success"], row["success_low"]) for row in rows} == {("", "")}
    assert [row["seeds"] for row in rows] == ["1", "2", "2"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('class="best"') == 1
    assert "return 300.0" in page.split('class="best"')[1].split("</td>")[0]


def test_one_run_that_is_still_being_written(make_run, tmp_path):
    folder = make_run("only", {1000: 0.5}, finished=False)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 1500, "eval/succ')
    report = build_report([folder], tmp_path / "out")
    assert report.cells[0].success == scores.Estimate(0.5, None, None, 1)
    assert "one seed" in (tmp_path / "out" / "report.html").read_text()


def test_goals_are_shown_and_text_is_escaped(make_run, tmp_path):
    folder = make_run("with-goal", {1000: 0.5})
    (folder / "goal").mkdir()
    (folder / "goal" / "goal.json").write_text(
        json.dumps({"text": "<b>pick</b>", "provenance": {"source": "a video", "note": "by hand"}})
    )
    (folder / "goal" / "goal.mp4").write_bytes(b"a video")
    build_report([folder], tmp_path / "out")
    text = (tmp_path / "out" / "report.html").read_text()
    assert "<b>" not in text
    assert "&lt;b&gt;pick" in text
    assert any(url.startswith("data:video/mp4") for url in References(text).urls)


def test_a_method_is_what_matters_of_the_settings(make_run, tmp_path):
    made = {
        "dense + genreward (alpha 10.0)": [
            dict(seed=0),
            dict(seed=1, device="cpu", engine="auto", steps=9000, task="reach"),
        ],
        "dense + genreward (alpha 1.0)": [dict(alpha=1.0)],
        "dense + genreward without video": [dict(use_video=False), dict(use_video=False, alpha=3.0, seed=4)],
        "sparse + genreward without fb": [dict(use_fb=False, env_reward="sparse", fb_steps=3000)],
        "dense": [dict(reward="none"), dict(reward="none", weights="random", window=64, seed=9)],
        "genreward": [dict(env_reward="none"), dict(env_reward="none", reward_weights="unused", seed=1)],
        "dense + viper (exploration 0.0)": [
            dict(reward="viper", reward_weights="w"),
            dict(reward="viper", reward_weights="w", window=64, fb_steps=9000, weights="random", seed=6),
        ],
        "dense + viper (exploration 0.5)": [dict(reward="viper", reward_weights="w", exploration=0.5)],
    }
    for i, flags in enumerate(made.values()):
        for j, flag in enumerate(flags):
            make_run(f"{i}-{j}", {1000: 0.0}, **flag)
    methods = by_method(read_runs([tmp_path / "runs"]))
    assert {name: len(runs) for name, runs in methods.items()} == {name: len(flags) for name, flags in made.items()}


def test_aggregates_by_hand():
    ordered = np.arange(8.0).reshape(4, 2)
    assert scores.iqm_estimate(ordered).value == pytest.approx(3.5)  # the mean of 2, 3, 4, 5
    better = scores.improvement_estimate(ordered + 10, ordered)
    assert (better.value, better.low, better.high) == (1, 1, 1)
    assert scores.improvement_estimate(ordered, ordered).value == 0.5
    assert scores.improvement_estimate(ordered[:1] + 10, ordered).low is None


def test_the_same_scores_give_the_same_interval():
    first, second = np.random.default_rng(0).normal(size=(2, 9, 3))
    figures = [lambda: scores.iqm_estimate(first), lambda: scores.improvement_estimate(first, second)]
    for figure in figures:
        state = np.random.get_state()[1].copy()  # noqa: NPY002 - which is left as it was
        once = figure()
        assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
        np.random.random(1000)  # noqa: NPY002
        assert figure() == once
        assert once.low < once.value < once.high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere"], "nowhere: no such folder"), (["."], "holds no run"), (["runs/a", "runs/b"], "the same run twice")],
)
def test_bad_input_is_one_line(arguments, message, make_run, tmp_path, monkeypatch, capsys):
    make_run("a", {1000: 0.0})
    make_run("b", {1000: 0.0})
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty" if arguments == ["."] else tmp_path)
    assert main(["report", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_same_folder_twice_is_one_run(make_run, tmp_path):
    folder = make_run("a", {1000: 0.0})
    assert len(read_runs([folder, tmp_path / "runs"])) == 1


def test_damaged_settings_name_the_file(make_run):
    folder = make_run("a", {1000: 0.0})
    (folder / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"config\.json: has no env\.task"):
        read_runs([folder])


def test_rliable_is_asked_for(make_run, tmp_path, monkeypatch):
    folder = make_run("a", {1000: 0.0})
    monkeypatch.setitem(sys.modules, "rliable", None)
    with pytest.raises(UserError, match=r"genreward-fast\[report\]"):
        build_report([folder], tmp_path / "out")
