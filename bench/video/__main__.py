"""`python -m bench.video`."""

import typer

from bench.video.command import main

if __name__ == "__main__":
    typer.run(main)
