"""UniPi (arXiv 2302.00111): a video as the plan, and the actions that lead from frame to frame."""
