"""The one folder that knows how the host works inside.

blocks.py               block names such as m0 and u0-u2, and what attention a model has
attention_tap.py        reads queries and keys of chosen layers during one forward pass of a UNet
joint_models.py, joint_attention_tap.py
                        the same for SD3, Flux, Chroma, Qwen-Image, Lumina 2 and Z-Image
feature_tap.py          reads what blocks compute, during one forward pass
evaluation.py           what is read while the host evaluates a step's conditions, chunk by chunk
recording.py            the same over the whole latent; the attention received
readers.py, record_run.py
                        the maps that a record holds, and how it is filled while a model samples
live_preview.py         shows on a Record node what was recorded last
extra_pass.py           our own evaluations of the model: labelled, tagged, without our recorders
parametrisation.py      how a model's latent is made of image and noise
records.py              what the Record nodes hand out; the run that a map node shows
executing.py            which node the host is executing
reading.py, prompt_words.py
                        what of a recorded run is shown; which tokens are which words of a prompt
run.py                  what lives as long as one sampling run; where in the schedule a step is
model_folders.py        folders below models that the host has no name for
depth_heads.py          depth heads in the hands of the host; whether one fits a model
frozen_unet.py, noise_levels.py
                        a UNet's features at chosen noise levels, outside of any sampling
depth_head_training.py, depth_estimation.py
                        Train Depth Head and Depth Estimate
gradients.py, differentiable_weights.py, differentiable_attention.py, differentiable_patches.py
                        gradients inside the host's own forward pass
depth_priors.py         the depth prior's UNet, and its training
training_watch.py       progress of a training, its curve, and its interruption
self_attention_guidance.py, self_attention_step.py
                        Self-Attention Guidance in a run, and at one step of it
depth_aware_guidance.py, depth_aware_step.py, depth_aware_losses.py
                        the same of Depth-Aware Guidance; what the node is set to
"""
