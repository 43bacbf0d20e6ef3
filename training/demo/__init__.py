"""Training of the next demo model, in one command and within whatever minutes there are.

    python -m training.demo --device cuda --minutes 12 --out training-out/demo

See :mod:`training.demo.stages` for what is trained in which order, :mod:`training.demo.checkpoint`
for what is kept of it.
"""
