"""Is the demo model fit to judge methods by? What plain sampling loses with fewer and fewer steps.

    python -m bench.fitness --scenes 200 --out bench/results/demo-fitness.json

Published models lose quality when they take fewer steps. On a model that loses none, nothing can
beat taking fewer, and it is no yardstick. Each number of steps is taken as users take it, by Euler
at the model's own time shift, and by the shift and the solver that were best on other scenes. All
draw the same scenes from the same seeds, so that what is lost to 50 steps is told in pairs.

``entries`` says what is drawn, ``evaluator`` draws and judges it, ``tune`` chooses shifts and
solvers, ``rows`` counts, ``tables`` shows.
"""
