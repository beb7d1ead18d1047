"""Configurations of the tiny models: the host's architectures, in few channels and blocks."""

import torch

CONTEXT = 16
POOLED = 32

# Half-size latents reach the middle block: a 16 x 16 latent has an 8 x 8 map there, as SD has at 512 px.
SMALL = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "transformer_depth": [1, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1],
    "num_heads": 4,
    "num_head_channels": -1,
    "context_dim": CONTEXT,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "adm_in_channels": None,
    "legacy": False,
    "dtype": torch.float32,
}
SD15 = SMALL | {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}
SDXL = SMALL | {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_middle": 2,
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "num_heads": -1,
    "num_head_channels": 16,
    "use_linear_in_transformer": True,
    "num_classes": "sequential",
    "adm_in_channels": POOLED + 6 * 256,
}
INPAINT = SMALL | {"in_channels": 9}
SVD = SMALL | {
    "num_head_channels": 16,
    "num_heads": -1,
    "in_channels": 8,
    "use_temporal_attention": True,
    "use_temporal_resblock": True,
    "num_classes": "sequential",
    "adm_in_channels": 3 * 256,
    "extra_ff_mix_layer": True,
    "use_spatial_context": True,
    "merge_strategy": "learned_with_images",
    "merge_factor": 0.0,
    "video_kernel_size": [3, 1, 1],
}

FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": POOLED,
    "context_in_dim": CONTEXT,
    "hidden_size": 48,
    "mlp_ratio": 2.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 3,
    "axes_dim": [8, 8, 8],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
    "txt_ids_dims": [],
    "dtype": torch.float32,
}
CHROMA = {key: value for key, value in FLUX.items() if key != "guidance_embed"} | {
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,
    "out_dim": 48,
    "hidden_dim": 32,
    "n_layers": 1,
}
SD3 = {  # 3.5: the first block has a second attention, over the image alone
    "in_channels": 16,
    "depth": 2,
    "num_blocks": 3,
    "adm_in_channels": POOLED,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": CONTEXT, "out_features": 128},
    },
    "pos_embed_max_size": 32,
    "num_patches": 1024,
    "qk_norm": "rms",
    "x_block_self_attn_layers": [0],
    "dtype": torch.float32,
}
QWEN = {
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 3,
    "attention_head_dim": 24,
    "num_attention_heads": 2,
    "joint_attention_dim": CONTEXT,
    "axes_dims_rope": (8, 8, 8),
    "dtype": torch.float32,
}
LUMINA = {
    "in_channels": 16,
    "dim": 48,
    "n_layers": 3,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 1,
    "multiple_of": 16,
    "qk_norm": True,
    "cap_feat_dim": CONTEXT,
    "axes_dims": (8, 8, 8),
    "axes_lens": (64, 64, 64),
    "dtype": torch.float32,
}
ZIMAGE = LUMINA | {
    "dim": 256,
    "n_heads": 8,
    "n_kv_heads": 8,
    "axes_dims": (8, 12, 12),
    "z_image_modulation": True,
    "pad_tokens_multiple": 32,
    "time_scale": 1000.0,
}
