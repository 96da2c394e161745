"""Fine-tuning of the image-to-video model with its own denoising objective."""
