"""The bench of clips: right object, right way, no flicker, and how fast, on the video demo.

    python -m bench.video --clips 100 --out bench/results/video.json

``points`` says what is measured, ``engines`` and ``peers`` draw it, ``rounds`` takes turns and
judges, ``rows`` counts, ``report`` compares, ``tables`` and ``figures`` show.
"""
