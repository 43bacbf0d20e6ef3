"""Request time: the noise field, the ways between whole and mixed grids, and the sampler loop.

Sits right of the bundle in the data path: runners go in, sampler steps come out. Needs torch, but
neither the exporter nor the model's own code; ``lower`` may import from here, never the reverse.
"""
