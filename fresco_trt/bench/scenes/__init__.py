"""What the demo models draw: scenes and their captions, their true pictures, and their classifier.

The bench compares with these, `fresco-trt calibrate --scenes` measures them, and the repository's
training/ learns from them.
"""
