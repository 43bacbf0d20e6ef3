"""The engine bundle: the only contract between ``lower/`` and ``run/``.

In the data path it is the double arrow. The manifest is the page that both sides read, ``folder``
puts a bundle on disk and opens it, and the other files are the tensors that a bundle carries beside
its engines. The format is described in ``docs/bundle-format.md``.
"""

from fresco_trt.bundle.folder import Bundle as Bundle
from fresco_trt.bundle.folder import BundleWriter as BundleWriter
from fresco_trt.bundle.folder import open_bundle as open_bundle
