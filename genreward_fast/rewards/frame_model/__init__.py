"""Rewards that ask a model of expert frames: codec, fitting, novelty bonus, and the reward itself."""
