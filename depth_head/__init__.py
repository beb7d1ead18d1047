"""Depth from a diffusion model's features (DAG, arXiv:2212.08861, section 3.2). Nothing here knows the host.

architectures/   features and time in, relative inverse depth out
"""
