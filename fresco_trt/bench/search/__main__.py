"""`python -m fresco_trt.bench.search`."""

import typer

from fresco_trt.bench.search.command import main

if __name__ == "__main__":
    typer.run(main)
