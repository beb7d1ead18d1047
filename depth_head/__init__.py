"""Depth from a diffusion model's features (DAG, arXiv:2212.08861, section 3.2). Nothing here knows the host.

architectures/    features, or the latent, and time in, relative inverse depth out
metrics.py        the depth convention, alignment, AbsRel, RMSE, delta1
head.py           a network with what is needed to use it; whether it fits a model
files.py          files of trained networks: metadata, atomic writing, safe reading
head_files.py     a depth head's file
readout_files.py  the public Readout heads
prior.py          the depth prior: its schedule, training, and maps that it draws
prior_files.py, prior_report.py
                  its file; the report of its training
training.py       training on features from a caller; head_report.py draws the report
estimates.py      what stands in for a model's clean estimates while a latent head is trained
rendering.py      depth as a picture, at image size
"""
