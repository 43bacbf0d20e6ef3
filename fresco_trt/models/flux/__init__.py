"""The FLUX family: FLUX.1-dev, -schnell, -Kontext, and the bundled demo models.

Everything that is peculiar to them; the rest of the package reaches it through
:mod:`fresco_trt.models.registry`.
"""
