"""One file per model family: facts, packing, positions and the export wrapper.

Read by the plan (facts) and by lowering (wrappers); :mod:`fresco_trt.models.registry` maps names to
them. Facts are numbers and import nothing heavy; torch is imported where a module is built.
"""
