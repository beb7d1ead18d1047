"""The one folder that knows how the host works inside.

blocks.py            block names such as m0 and u0-u2, and what attention a model has
attention_tap.py     reads queries and keys of chosen layers during one forward pass
recording.py         the attention received, over one evaluation of the conditions
extra_pass.py        our own evaluations of the model: labelled, tagged, without our recorders
run.py               what lives as long as one sampling run; where in the schedule a step is
self_attention_guidance.py   Self-Attention Guidance in a run, from these and the mathematics
"""
