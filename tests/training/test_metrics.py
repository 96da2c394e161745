"""Meters, statistics, progress."""

import io
import json
import math

import pytest
import torch

from genreward_fast.training.curves import smooth
from genreward_fast.training.logger import Logger, Progress, duration, read_metrics
from genreward_fast.training.metrics import Meters, first_not_finite
from genreward_fast.training.statistics import wilson_interval


def test_meters_give_means_and_start_anew():
    meters = Meters()
    for value in (1.0, 2.0, 6.0):
        meters.add({"a": torch.tensor(value)})
    meters.add({"b": torch.tensor(5)})
    assert meters.read() == {"a": 3.0, "b": 5.0}
    assert meters.read() == {}


def test_meters_do_not_change_what_they_are_given():
    meters, value = Meters(), torch.tensor(1.0)
    meters.add({"a": value})
    meters.add({"a": value})
    assert value == 1


def test_the_single_loss_is_named_before_their_sum():
    values = {"loss/total": math.nan, "opt/grad_norm": math.nan, "loss/policy": math.nan, "loss/dyn": 1.0}
    assert first_not_finite(values) == "loss/policy"
    assert first_not_finite({"loss/total": math.inf}) == "loss/total"
    assert first_not_finite({"loss/dyn": 1.0}) is None


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    # Wilson's formula by hand: (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.959964
    [(5, 10, 0.236593, 0.763407), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0)],
)
def test_wilson_interval(successes, episodes, low, high):
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=1e-5)


def test_wilson_interval_without_episodes_says_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_smoothing_is_the_mean_of_the_last_values():
    assert smooth(torch.arange(5.0).numpy(), window=2).tolist() == [0.0, 0.5, 1.5, 2.5, 3.5]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3723, "1:02:03")])
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_a_resumed_log_drops_what_came_after_the_checkpoint(tmp_path):
    first = Logger(tmp_path)
    for step in (1, 2, 3):
        first.write(step, {"x": float(step)})
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "x"')  # a process was killed here
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3]
    second = Logger(tmp_path, step=2)
    second.write(3, {"x": 30.0})
    second.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(record["step"], record["x"]) for record in records] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_progress_prints_rate_and_time_left():
    stream = io.StringIO()
    progress = Progress(total=100, done=40, stream=stream)
    progress._started -= 10
    progress._recent = (progress._started, 40)
    progress.show(60, "hello", force=True)
    line = stream.getvalue()
    assert "step 60/100 (60%)" in line
    assert "2.0 steps/s" in line
    assert "0:20 left" in line
    assert "hello" in line
