"""`genreward bench --what cosine` with the options of a kernel's benchmark."""

from genreward_fast.bench.cosine import main

if __name__ == "__main__":
    main()
