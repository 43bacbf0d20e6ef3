"""The inductor backend: torch's own compiler, ahead of time, one block of each kind at a time."""
