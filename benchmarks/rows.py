"""The rows of the benchmark: a model, plain and with each guidance or record node applied."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_nag import NAGuidance
from comfy_extras.nodes_sag import SelfAttentionGuidance

from ..nodes.depth_aware_guidance import InnerDepthAwareGuidance
from ..nodes.record import InnerRecordAttention, InnerRecordFeatures
from ..nodes.self_attention_guidance import InnerSelfAttentionGuidance
from .models import depth_head, depth_prior, latent_head, target_depth
from .naive_depth_guidance import naively_guided
from .step_costs import Row

PLAIN = "plain"
EVERY = 2

SAG: dict[str, Any] = {
    "scale": 0.75,
    "blur_sigma": 1.0,
    "threshold": 1.0,
    "blocks": "m0",
    "branch": "auto",
    "space": "eps",
    "start_percent": 0.0,
    "end_percent": 1.0,
    "every_n_steps": 1,
}
DAG: dict[str, Any] = {
    "consistency_scale": 1.0,
    "prior_scale": 0.0,
    "target_scale": 0.0,
    "mode": "robust",
    "start_percent": 0.0,
    "end_percent": 1.0,
    "self_start_percent": 0.0,
    "target_end_percent": 1.0,
    "every_n_steps": 1,
}
RECORDING: dict[str, Any] = {"start_percent": 0.0, "end_percent": 1.0, "max_steps": 20, "preview": False}


# The rows that a model cannot have: the baseline knows no other input than the prompt, and the host's nodes
# patch UNets alone.
NOT_OF = {
    "sd15": (),
    "sdxl": ("naive_dag",),
    "sdxl_2048": ("naive_dag",),
    "flux": ("naive_dag", "host_sag", "nag", "dag_nag"),
    "z_image": ("naive_dag", "host_sag", "nag", "dag_nag"),
}


def rows_of(model: ModelPatcher, left_out: Iterable[str] = ()) -> dict[str, Row]:
    """The rows by name, without those that are left out."""
    head = depth_head(model)
    losses: dict[str, Any] = {
        "prior_scale": 1.0,
        "target_scale": 1.0,
        "depth_prior": depth_prior(),
        "target_depth": target_depth(),
    }

    def dag(of: ModelPatcher = model, **settings: Any) -> ModelPatcher:
        return InnerDepthAwareGuidance.execute(of, **DAG | {"depth_head": head} | settings).result[0]

    network = head.head.network
    latent: dict[str, Any] = {
        "depth_head": latent_head(model),
        "consistency_scale": 0.0,
        "target_scale": 1.0,
        "target_depth": target_depth(),
    }
    recorded = InnerRecordAttention.execute(model, "m0", **RECORDING, prompt=False).result[0]
    features = InnerRecordFeatures.execute(model, "m0", branch="positive", **RECORDING).result[0]
    rows = {
        PLAIN: Row("plain CFG step", model),
        "recording": Row("recording attention", recorded),
        "features": Row("recording features", features),
        "sag": Row("SAG", sag(model)),
        "sag_reused": Row(f"SAG, every_n_steps {EVERY}", sag(model, every_n_steps=EVERY), EVERY),
        "host_sag": Row("the host's own SAG", host_sag(model)),
        "dag": Row("DAG, consistency", dag()),
        "dag_all": Row("DAG, consistency, prior and target", dag(**losses)),
        "dag_reused": Row(f"DAG, every_n_steps {EVERY}", dag(every_n_steps=EVERY), EVERY),
        "dag_checkpointing": Row("DAG, checkpointing", dag(checkpointing=True)),
        "dag_latent": Row("DAG, target by a latent head", dag(**latent)),
        "nag": Row("the host's NAG", nag(model)),
        "dag_nag": Row("DAG with NAG: both prompts in the gradient", dag(nag(model))),
        "naive_dag": Row("naive DAG", naively_guided(model, network)),
        "both": Row("DAG and SAG", dag(sag(model))),
    }
    return {name: row for name, row in rows.items() if name not in left_out}


def sag(model: ModelPatcher, **settings: Any) -> ModelPatcher:
    """The model with Self-Attention Guidance."""
    return InnerSelfAttentionGuidance.execute(model, **SAG | settings).result[0]


def host_sag(model: ModelPatcher) -> ModelPatcher:
    """The model with the host's own Self-Attention Guidance, at the same settings."""
    return SelfAttentionGuidance.execute(model, SAG["scale"], SAG["blur_sigma"]).result[0]


def nag(model: ModelPatcher) -> ModelPatcher:
    """The model with Normalized Attention Guidance, which compares the two prompts within a pass."""
    return NAGuidance.execute(model, 5.0, 0.5, 1.5).result[0]
