"""What a sweep shows: a table on a terminal, lines elsewhere."""

import io

from rich.console import Console

from genreward_fast.training.sweep.progress import Reading
from genreward_fast.training.sweep.table import Display, Row, line_of, summary_of, time_left


def row(seed=0, state="running", step=250, rate=5.0, **reading):
    name = f"reach-sparse-genreward-no-fb-seed{seed}"
    return Row(name, "reach", "sparse", "genreward:no-fb", seed, state, 1000, Reading(step, rate, **reading))


def test_cells():
    assert row(3, episode_return=12.34, success=0.456).cells() == (
        "reach", "sparse", "genreward:no-fb", "3", "running", "250/1000", "5.0", "12.3", "46%", "2:30",
    )  # fmt: skip
    assert row(state="waiting", step=0, rate=None).cells()[-5:] == ("0/1000", "", "", "", "")


def test_time_left_counts_what_waits():
    rows = [row(0), row(1, step=500), row(2, "waiting", 0, None), row(3, "finished", 1000), row(4, "failed", 10)]
    # 750 + 500 + 1000 steps, two trials at once with 5 steps/s each.
    assert time_left(rows, 2) == 225
    assert time_left(rows[:1], 8) == 150  # no sooner than the longest trial
    assert time_left(rows[2:], 2) is None
    assert summary_of(rows, 2) == "5 trials: 1 finished, 1 waiting, 1 failed, 2 running; 3:45 left"
    assert line_of(rows[:2], 2).endswith(f"({rows[0].name} 250/1000, {rows[1].name} 500/1000)")


def test_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    with Display(Console(file=stream, width=60)) as display:
        display.update([row()], 1)
        display.say("reach: failed: [Errno 28] No space left on a device whose name is long, very long (see a.log)")
        display.update([row()], 1)  # within the same minute
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("1 trials: 1 running; 2:30 left")
    assert "[Errno 28]" in lines[1]


def test_a_table_that_fits_the_terminal_with_what_matters_first():
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, height=12)
    rows = [row(seed, "finished", 1000) for seed in range(20)] + [row(77), row(78, "failed")]
    with Display(console) as display:
        display.update(rows, 1)
    text = stream.getvalue()
    assert "14 not shown; 22 trials: 20 finished, 1 failed, 1 running" in text
    assert text.index("running") < text.index("failed") < text.index("finished")
    assert "77" in text
