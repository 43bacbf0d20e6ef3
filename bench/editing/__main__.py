"""`python -m bench.editing`."""

import typer

from bench.editing.command import main

if __name__ == "__main__":
    typer.run(main)
