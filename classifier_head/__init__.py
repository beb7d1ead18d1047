"""A classifier of noisy latents that reads the features of a diffusion model: network, training, files.

It shares the format of files and the normalisation with depth_head/, and knows nothing of the host.
"""
