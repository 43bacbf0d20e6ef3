"""`python -m bench.search`."""

import typer

from bench.search.command import main

if __name__ == "__main__":
    typer.run(main)
