"""`genreward sweep`: tasks × rewards × seeds, each a run of its own, on the machines of a Ray cluster."""
