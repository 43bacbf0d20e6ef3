"""`python -m bench.gpu`."""

import typer

from bench.gpu.command import main

if __name__ == "__main__":
    typer.run(main)
