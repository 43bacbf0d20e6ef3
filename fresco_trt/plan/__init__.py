"""Numbers only: schedules, grids, stages, presets and their cost.

First in the data path: everything built ahead of time and everything run at request time reads the
:class:`~fresco_trt.plan.stages.StagePlan` made here. Nothing in this package imports torch, numpy
or an engine library, so a plan can be made and printed on any machine.
"""
