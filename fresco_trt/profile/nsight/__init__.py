"""Exports of Nsight Systems: opened with care, joined in SQL, summed by stage, step and part."""

from fresco_trt.profile.nsight.reading import read_export

__all__ = ["read_export"]
