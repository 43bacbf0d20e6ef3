"""Prompt in, picture out: over a bundle's engines, or inside a diffusers pipeline."""
