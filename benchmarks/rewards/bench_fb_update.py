"""`genreward bench --what fb-update` with the options of a kernel's benchmark."""

from genreward_fast.bench.fb_update import main

if __name__ == "__main__":
    main()
