"""Ahead of time: stage graphs, calibration, quantisation and engines. Never imported by ``run``."""
