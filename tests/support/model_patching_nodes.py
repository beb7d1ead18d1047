"""The nodes of the host that patch a model and need nothing but the model."""

import importlib

import comfy_extras.nodes_post_processing  # noqa: F401  # before nodes_latent: each imports the other

import nodes as stock
from inner_guidance.tests.support.tiny_models import result_of

# They need files or several GPUs, or compile.
LEFT_OUT = {
    "HypernetworkLoader",
    "LoraLoaderBypassModelOnly",
    "LoraLoaderModelOnly",
    "MultiGPU_WorkUnits",
    "TorchCompileModel",
}
# Values for which a node acts on a tiny model, in its first step; all else is at its default.
VALUES = {
    "ContextWindowsManual": {"context_length": 2, "context_overlap": 1},
    "HyperTile": {"tile_size": 32, "swap_size": 4, "max_depth": 1},
    "PatchModelAddDownscale": {"block_number": 1, "end_percent": 1.0},
    "ScaleROPE": {"scale_x": 1.5, "shift_y": 3.0},
    "SkipLayerGuidanceDiT": {"double_layers": "1", "single_layers": "1", "start_percent": 0.0},
    "SkipLayerGuidanceDiTSimple": {"double_layers": "0", "single_layers": ""},
    "SkipLayerGuidanceSD3": {"layers": "1", "start_percent": 0.0},
    "TomePatchModel": {"ratio": 0.5},
    "UNetCrossAttentionMultiply": {"v": 1.5},
    "UNetSelfAttentionMultiply": {"q": 1.5},
}


def model_patching_nodes(host):
    """Nodes of the host that take one model and widgets, and return a model, by id."""
    found = dict(stock.NODE_CLASS_MAPPINGS)
    for file in sorted((host / "comfy_extras").glob("nodes_*.py")):
        if "Model.Output" not in (text := file.read_text(encoding="utf-8")) and '"MODEL"' not in text:
            continue
        module = vars(importlib.import_module(f"comfy_extras.{file.stem}"))
        found |= module.get("NODE_CLASS_MAPPINGS", {})
        for node in module.values():
            if hasattr(node, "define_schema") and node.__module__ == module["__name__"]:
                found[node.GET_SCHEMA().node_id] = node
    return {name: node for name, node in found.items() if "MODEL" in node.RETURN_TYPES}


def defaults_of(node):
    """The values of a new node's widgets; None for a node with other inputs than a model and widgets."""
    values = {}
    inputs = node.INPUT_TYPES()
    for name, (kind, *options) in (inputs.get("required", {}) | inputs.get("optional", {})).items():
        options = options[0] if options else {}
        choices = options.get("options") if kind == "COMBO" else kind if isinstance(kind, list) else ()
        if name == "model":
            continue
        if "default" not in options and not choices:
            return None
        values[name] = options.get("default", choices[0] if choices else None)
    return values if "model" in inputs["required"] else None


def behind(node, name, model):
    """The model that a node returns, V1 or V3."""
    values = defaults_of(node) | VALUES.get(name, {})
    patch = node.execute if hasattr(node, "define_schema") else getattr(node(), node.FUNCTION)
    return result_of(patch(model=model, **values))


def tried_nodes(host):
    """Those that every guidance is tried with, by id."""
    return {
        name: node
        for name, node in model_patching_nodes(host).items()
        if name not in LEFT_OUT and defaults_of(node) is not None
    }
