"""Models as the host's TorchCompileModel compiles them."""

from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_extras.nodes_torch_compile import skip_torch_compile_dict

BLOCK = "diffusion_model.middle_block.1.transformer_blocks.0"  # tracing a whole UNet takes 20 s


def compiled(model, key=BLOCK):
    """The model with one of its modules compiled by a backend that runs what PyTorch traced as it is."""
    model = model.clone()
    options = {"guard_filter_fn": skip_torch_compile_dict}
    set_torch_compile_wrapper(model, backend="eager", options=options, keys=[key])
    return model
