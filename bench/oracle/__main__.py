"""`python -m bench.oracle`."""

import typer

from bench.oracle.command import main

if __name__ == "__main__":
    typer.run(main)
