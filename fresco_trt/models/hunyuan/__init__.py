"""HunyuanVideo: architecture, tokens of clips, weights, prompts, frames and presets.

One folder for one family; ``family.py`` says where each of its parts is.
"""
