"""`genreward bench --what fb` with the options of a kernel's benchmark."""

from genreward_fast.bench.fb import main

if __name__ == "__main__":
    main()
