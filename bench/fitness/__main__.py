"""`python -m bench.fitness`."""

import typer

from bench.fitness.command import main

if __name__ == "__main__":
    typer.run(main)
