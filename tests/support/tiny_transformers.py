"""Configurations of the other tiny transformers: the host's architectures, in few channels and blocks."""

import torch

from inner_guidance.tests.support.tiny_configs import CONTEXT, POOLED

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
MAGE = QWEN | {"in_channels": 16}
KREA2 = {
    "features": 48,
    "tdim": 32,
    "txtdim": 8,
    "heads": 2,
    "kvheads": 1,
    "multiplier": 2,
    "layers": 3,
    "txtlayers": 2,
    "txtheads": 1,
    "txtkvheads": 1,
    "default_ref_method": "index",
    "dtype": torch.float32,
}
COSMOS = {
    "max_img_h": 32,
    "max_img_w": 32,
    "max_frames": 4,
    "in_channels": 16,
    "out_channels": 16,
    "patch_spatial": 2,
    "patch_temporal": 1,
    "concat_padding_mask": True,
    "model_channels": 48,
    "num_blocks": 3,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "crossattn_emb_channels": CONTEXT,
    "pos_emb_cls": "rope3d",
    "use_adaln_lora": True,
    "adaln_lora_dim": 8,
    "dtype": torch.float32,
}
WAN = {
    "dim": 48,
    "ffn_dim": 64,
    "freq_dim": 32,
    "text_dim": CONTEXT,
    "num_heads": 2,
    "num_layers": 3,
    "dtype": torch.float32,
}
HIDREAM = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 24,
    "num_attention_heads": 2,
    "caption_channels": [CONTEXT, CONTEXT],
    "text_emb_dim": POOLED,
    "num_routed_experts": 2,
    "num_activated_experts": 1,
    "axes_dims_rope": (8, 8, 8),
    "max_resolution": (16, 16),
    "llama_layers": [0, 1, 1, 0],
    "dtype": torch.float32,
}
IDEOGRAM = {
    "in_channels": 16,
    "num_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "intermediate_size": 64,
    "adaln_dim": 16,
    "llm_features_dim": CONTEXT,
    "rope_theta": 10000,
    "mrope_section": (4, 4, 4),
    "dtype": torch.float32,
}
ERNIE = {
    "hidden_size": 48,
    "num_attention_heads": 2,
    "num_layers": 3,
    "ffn_hidden_size": 64,
    "in_channels": 16,
    "out_channels": 16,
    "text_in_dim": CONTEXT,
    "rope_axes_dim": (8, 8, 8),
    "dtype": torch.float32,
}
PIXART = {
    "hidden_size": 48,
    "depth": 3,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "caption_channels": CONTEXT,
    "model_max_length": 7,
    "micro_condition": False,
    "dtype": torch.float32,
}
HYDIT = {
    "hidden_size": 48,
    "depth": 4,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "text_states_dim": CONTEXT,
    "text_states_dim_t5": CONTEXT,
    "text_len": 7,
    "text_len_t5": 5,
    "size_cond": True,
    "dtype": torch.float32,
}
AURA = {
    "in_channels": 16,
    "out_channels": 16,
    "dim": 48,
    "n_layers": 4,
    "n_double_layers": 2,
    "n_heads": 2,
    "global_conddim": 48,
    "cond_seq_dim": CONTEXT,
    "max_seq": 64,
    "dtype": torch.float32,
}
KANDINSKY = {
    "in_text_dim": CONTEXT,
    "in_text_dim2": POOLED,
    "time_dim": 16,
    "model_dim": 48,
    "ff_dim": 64,
    "visual_embed_dim": 64,
    "num_text_blocks": 1,
    "num_visual_blocks": 3,
    "axes_dims": (8, 8, 8),
    "dtype": torch.float32,
}
OMNIGEN2 = {
    "hidden_size": 48,
    "num_layers": 3,
    "num_refiner_layers": 1,
    "num_attention_heads": 2,
    "num_kv_heads": 1,
    "multiple_of": 16,
    "axes_dim_rope": (8, 8, 8),
    "axes_lens": (64, 64, 64),
    "text_feat_dim": CONTEXT,
    "dtype": torch.float32,
}
BOOGU = {key: value for key, value in OMNIGEN2.items() if key != "text_feat_dim"} | {
    "num_double_stream_layers": 2,
    "instruction_feat_dim": CONTEXT,
}
LENS = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 24,
    "num_attention_heads": 2,
    "enc_hidden_dim": CONTEXT // 2,
    "selected_layer_index": (0, 1),
    "axes_dims_rope": (8, 8, 8),
    "dtype": torch.float32,
}
JOYIMAGE = {
    "hidden_size": 48,
    "num_attention_heads": 2,
    "text_dim": CONTEXT,
    "mlp_width_ratio": 2.0,
    "num_layers": 3,
    "rope_dim_list": [8, 8, 8],
    "dtype": torch.float32,
}
PIXELDIT = {
    "num_groups": 2,
    "hidden_size": 48,
    "pixel_hidden_size": 4,
    "pixel_attn_hidden_size": 48,
    "pixel_num_groups": 2,
    "patch_depth": 3,
    "pixel_depth": 1,
    "patch_size": 4,
    "txt_embed_dim": CONTEXT,
    "txt_max_length": 32,
    "dtype": torch.float32,
}
