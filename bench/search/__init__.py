"""Search of the demo's operating points: random plans of each budget, halved by what they draw.

    python -m bench.search --stages 3   how three stages go, for the presets
    python -m bench.search --stages 1   which steps of one stage a cache answers, and which

A budget is how many times fewer FLOPs than the plain pipeline a plan must need. Random plans that
keep to it draw a few scenes each, the better ones draw more, and so on (successive halving:
Jamieson and Talwalkar, AISTATS 2016). A picture is worth 1 if it shows what its caption says, plus
its SSIM to the 50-step picture of its seed. The scenes are none of the bench's, so that what was
chosen on some is measured on others. A killed search goes on where it was.

Candidates come from :mod:`~bench.search.stages` and :mod:`~bench.search.cache_schedule`;
:mod:`~bench.search.halving` is the contest, and :mod:`~bench.search.command` holds it and stores
what is left.
"""
