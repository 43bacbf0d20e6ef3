"""The methods on an exact flow: what each loses that is not the small network's fault.

    python -m bench.oracle --out bench/results

A finite set of scenes has a flow with a closed form (:mod:`~bench.oracle.flow`), a perfectly
trained model at every resolution at once. Every method that is a plan is drawn with it
(:mod:`~bench.oracle.runner`), and compared in FLOPs: its seconds are no transformer's.
"""
