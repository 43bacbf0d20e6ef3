"""Whole files and whole folders or none, one spelling of JSON, pictures that are given, digests,
and where things are kept.

Beside the data path: whoever reads a picture or writes to disk stands on this, and it knows of no
model and no engine.
"""
