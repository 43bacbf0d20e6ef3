"""The next demo's data: scenes that leave the picture open, their captions, pictures and judge.

    python -m training.scenes drawings    fetch the drawings, into training-out/drawings.zip
    python -m training.scenes sheet       draw scenes with their captions on one sheet
    python -m training.scenes speed       how many pictures a second this machine draws
    python -m training.scenes judge       train the judge of facts, in training-out/judge

What ships is trained on the closed scenes of `fresco_trt.bench.scenes`, where a caption says
nearly everything. Here several artists draw the same objects, and a caption may say as little as
"a picture", so that early denoising steps have something to decide.
"""
