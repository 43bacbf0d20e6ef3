"""Speed on a GPU: the plain pipeline, compiled or not, beside our plans on engines of torch's own.

    python -m bench.gpu                 FLUX.1-dev's dimensions, random weights, bf16
    python -m bench.gpu --precision fp8 our engines in FP8, the plain pipeline in bf16
    python -m bench.gpu --tiny          the same code at tiny dimensions, on any machine

One command, within --minutes: weights are made on the device, engines are built over them, and
what there is time for is measured side by side, in rounds, the most important first. Random
weights draw no pictures: this measures time and memory, and no quality.
"""

from time import perf_counter

BEGAN = perf_counter()
"""When the program began: what it imports counts towards the time that it is given."""
