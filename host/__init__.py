"""The one folder that knows how ComfyUI works inside. Each room imports only from those above it.

keys.py           the pack's keys in the host's option dictionaries; attaching and leaving out wrappers
live_preview.py   pictures on a node while a sampler runs
taps/             names of blocks; reading queries, keys and features in one forward pass
sampling/         one step: chunks of a batch, step recorder, extra pass, frozen model, schedule
gradients/        gradients inside the host's own forward pass
depth/            heads and priors as the host holds them, their training, Depth Estimate
recording/        records: what is read, how a run fills them, how a map node finds its run
steering/         Self-Attention Guidance and Depth-Aware Guidance: the run, the step, the losses

How a step flows through them: docs/architecture.md.
"""
