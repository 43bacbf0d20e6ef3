"""What plans, caches and precisions need of a model, measured: one file a measurement."""
