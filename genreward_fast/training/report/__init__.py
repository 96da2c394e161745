"""`genreward report`: what several runs say together, as one page, pictures and tables."""
