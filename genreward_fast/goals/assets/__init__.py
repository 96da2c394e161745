"""Training the weights of preset `tiny`: `build.py` runs the parts, each of which is a file."""
