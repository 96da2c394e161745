"""SAC of Stable-Baselines3 with our reward on every transition (`credit="spread"`), added when its window closes.

usage: python examples/sb3_sac_spread.py [--steps N]      (pip install 'genreward-fast[sb3]')
"""

from __future__ import annotations

import argparse

from point_mass import make_env, make_goal
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env

from genreward_fast.rewards.config import FBConfig, RewardConfig
from genreward_fast.rewards.genreward import GenReward
from genreward_fast.sb3 import GenRewardReplayBuffer, GenRewardVecEnv


def main(steps: int, device: str = "cpu", envs: int = 4) -> SAC:
    """Trains for `steps` environment steps, and returns the model."""
    window = 16
    config = RewardConfig(
        window=window, interval=window, clip_frames=4, credit="spread", fb_steps=max(1, steps // 4),
        fb=FBConfig(hidden=64, z_dim=16),
    )  # fmt: skip
    reward = GenReward(make_goal(), preset="tiny", config=config, action_size=2, device=device)
    venv = make_vec_env(make_env, n_envs=envs)
    venv = GenRewardVecEnv(venv, reward, credit="spread", env_reward="none", batch_size=64)
    model = SAC(
        "MlpPolicy",
        venv,
        replay_buffer_class=GenRewardReplayBuffer,
        learning_starts=2 * window * envs,  # nothing can be sampled before the first window has closed
        batch_size=64,
        policy_kwargs={"net_arch": [64, 64]},
        device=device,
        seed=0,
    )
    model.learn(steps)
    print(f"{model.num_timesteps} steps; FB is {'frozen' if reward.frozen else 'still learning'}: {reward.note}")
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    main(options.steps, options.device)
