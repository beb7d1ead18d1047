"""The papers' mathematics on tensors. What depends on ComfyUI is in host/."""
