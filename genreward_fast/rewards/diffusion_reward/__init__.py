"""Diffusion Reward (arXiv 2312.14134): how sure a diffusion model of expert frames is of what comes next."""
