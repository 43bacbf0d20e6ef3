"""The bench of editing: whether edits are made, the rest left alone, and how fast, on the demo.

    python -m bench.editing --scenes 100 --out bench/results/editing.json

``points`` says what is measured, ``engines`` and ``peers`` draw it, ``rounds``
takes turns, ``rows`` counts, ``report`` compares, ``tables`` and ``figures`` show.
"""
