"""`python -m fresco_trt.bench.gpu`."""

import typer

from fresco_trt.bench.gpu.command import main

if __name__ == "__main__":
    typer.run(main)
