"""The commands of `genreward`, one a file: flags into calls, no logic. What imports torch is imported inside them."""
