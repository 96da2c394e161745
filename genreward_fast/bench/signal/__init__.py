"""The learning signal: whether rewards tell held-out expert episodes from half-expert and random ones."""
