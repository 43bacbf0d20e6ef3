"""INT8 and FP8: codes in exported graphs and in torch modules, their simulation, and the gate."""
