"""Studies beside `fresco-trt bench`, and the tables that are made of the stored results.

Code of the repository, not of the package. Run from its root:

    python -m bench.main_job       three static engines beside diffusers' own pipeline
    python -m bench.fitness        whether the demo model is a yardstick
    python -m bench.editing        ways to edit: what is made, what is left alone, and how fast
    python -m bench.ablations      a preset with one part exchanged at a time
    python -m bench.caches         every cache on the plain steps and on presets
    python -m bench.combinations   stages, caches, precisions and distilling in every combination
    python -m bench.oracle         an exact flow in place of the model
    python -m bench.presets        the demo's presets, by `fresco-trt tune` at every speed
    python -m bench.gpu            time and memory on a GPU
    python -m bench.contact_sheet  pictures to look at
    python -m bench.tables         stored results as Markdown

What they have in common with the command is the package's: :mod:`fresco_trt.bench`.
"""
