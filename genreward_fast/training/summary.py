"""What a run says at its end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from genreward_fast.files import write_json
from genreward_fast.training.evaluation import Evaluation, success_text
from genreward_fast.training.logger import duration, read_metrics


@dataclass(frozen=True)
class Summary:
    """The figures of a finished run.

    Attributes:
        env_steps, updates, episodes, discarded_episodes: counts over the whole run.
        seconds: wall time of training, evaluations included, over all the processes that the run has had.
        steps_per_second: env_steps / seconds.
        evaluation: of the last evaluation, by name.
        rewards: mean of each part of the reward over the run's windows, by name; `_raw` before its weight.
        device: what it ran on.
        notes: what must be known about these numbers.
    """

    env_steps: int
    updates: int
    episodes: int
    discarded_episodes: int
    seconds: float
    steps_per_second: float
    evaluation: dict[str, float]
    rewards: dict[str, float]
    device: str
    notes: list[str]

    @staticmethod
    def of_run(
        folder: Path,
        evaluation: Evaluation,
        *,
        env_steps: int,
        updates: int,
        episodes: int,
        discarded: int,
        seconds: float,
        device: str,
        notes: list[str],
    ) -> Summary:
        """Takes the means of the rewards from the run's metrics file."""
        values: dict[str, list[float]] = {}
        for record in read_metrics(folder):
            for name, value in record.items():
                if name.startswith("reward/") or name == "env/dense_reward":
                    values.setdefault(name.removeprefix("reward/"), []).append(value)
        return Summary(
            env_steps=env_steps,
            updates=updates,
            episodes=episodes,
            discarded_episodes=discarded,
            seconds=seconds,
            steps_per_second=env_steps / max(seconds, 1e-9),
            evaluation=evaluation.scalars(),
            rewards={name: sum(entries) / len(entries) for name, entries in values.items()},
            device=device,
            notes=notes,
        )

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))

    def lines(self) -> list[str]:
        """The summary as it is printed."""
        e = self.evaluation
        rows = [
            ("environment steps", f"{self.env_steps}"),
            ("agent updates", f"{self.updates}"),
            (
                "episodes",
                f"{self.episodes}" + (f" ({self.discarded_episodes} discarded)" * (self.discarded_episodes > 0)),
            ),
            ("wall time", f"{duration(self.seconds)} on {self.device}"),
            ("speed", f"{self.steps_per_second:.1f} steps/s"),
            ("episode return", f"{e['return_mean']:.1f} ± {e['return_std']:.1f} over {e['episodes']:.0f} episodes"),
            ("success rate", success_text(e)),
        ]
        rows += [(f"mean reward: {name}", f"{value:+.4f}") for name, value in sorted(self.rewards.items())]
        rows += [("note", note) for note in self.notes]
        width = max(len(name) for name, _ in rows)
        return [f"{name.ljust(width)}  {value}" for name, value in rows]
