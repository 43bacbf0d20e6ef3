"""`fresco-trt calibrate`: measure what plans, caches and precisions need of a model, and store it.

Beside the data path: what is measured goes to the repository's calibration/, and is an input of
planning and building. One file for each kind of measurement; the measuring itself is in
:mod:`fresco_trt.lower`.
"""
