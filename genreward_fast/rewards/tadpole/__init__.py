"""TADPoLe: rewards from how well a text-conditioned diffusion model denoises what the agent does."""
