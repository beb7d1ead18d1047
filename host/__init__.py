"""The one folder that knows how ComfyUI works inside. Each part imports only from those above it.

keys.py           the pack's keys in the host's option dictionaries; attaching and leaving out wrappers
live_preview.py   pictures on a node while a sampler runs
taps/             names of blocks; reading queries, keys and features in one forward pass
sampling/         one step: chunks of a batch, step recorder, schedule; the frozen model, outside of sampling
gradients/        gradients inside the host's own forward pass
depth/            depth heads and priors as the host holds them, their training, Depth Estimate
classifier/       classifier heads as the host holds them, their training
recording/        records: what is read, how a run fills them, how a map node finds its run
steering/         Self-Attention, Depth-Aware and Classifier Guidance: run, step, extra pass, losses

How a step flows through them: docs/architecture.md.
"""
