"""Qwen-Image and its editors: architecture, tokens, weights, prompts, pictures and presets.

One folder for one family; ``family.py`` says where each of its parts is.
"""
