"""`fresco-trt tune`: the best plan for a model's weights on this machine, of all kinds there are.

Beside the build: what it finds is a plan, which ``build --plan`` takes. The path of a run::

    families -> engines      -> seconds -> contest -> plan, table, report
    families    model_runner    cost       halving    job, report

Candidates come from :mod:`~fresco_trt.tune.families`, a family an entry. An engine is what a stage
shape needs, whatever sigmas walk over it, so that all candidates share about two dozen, built once.
Seconds are measured step by step (:mod:`~fresco_trt.tune.cost`), pictures are drawn and judged by
:mod:`~fresco_trt.tune.model_runner`, ever fewer candidates on ever more of them
(:mod:`~fresco_trt.tune.halving`). Plain sampling with few steps is among the candidates to the end.
"""
