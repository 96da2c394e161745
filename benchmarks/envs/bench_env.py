"""`genreward bench --what env` with more options."""

from genreward_fast.bench.env import main

if __name__ == "__main__":
    main()
