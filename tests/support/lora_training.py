"""The host's Train LoRA."""

import torch
from comfy_extras import nodes_train

import nodes as stock

SETTINGS = {
    "batch_size": 1,
    "steps": 3,
    "grad_accumulation_steps": 1,
    "learning_rate": 0.01,
    "rank": 2,
    "optimizer": "AdamW",
    "loss_function": "MSE",
    "seed": 0,
    "training_dtype": "fp32",
    "lora_dtype": "fp32",
    "algorithm": "LoRA",
    "gradient_checkpointing": True,
    "checkpoint_depth": 1,
    "offloading": False,
    "existing_lora": "[None]",
    "bucket_mode": False,
    "bypass_mode": False,
    "quantized_backward": False,
}


def trained(model, clip):
    """The LoRA of three steps on two random latents, and the losses of the steps."""
    given = {
        "model": model,
        "latents": {"samples": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))},
        "positive": stock.CLIPTextEncode().encode(clip, "red sphere")[0],
    }
    torch.manual_seed(0)
    lora, losses, _ = nodes_train.TrainLoraNode.execute(
        **{name: [value] for name, value in (SETTINGS | given).items()}
    ).args
    return lora, losses["loss"]
