"""The demo workflows in four steps, on the demo UNet and the demo transformer."""

import copy

from inner_guidance.tools.host_server import Prompt
from inner_guidance.tools.template_runs import shortened, template

SHORT = {
    "KSampler": {"steps": 4},
    "InnerDepthEstimate": {"ensemble": 1},
    "InnerTrainDepthHead": {"steps": 20},
    "InnerTrainDepthPrior": {"steps": 20},
    "InnerTrainClassifierHead": {"steps": 20},
}
# In few steps a prior of few steps finds no image worse than real ones, which the paper's mode does not ask.
UNCALIBRATED = {"InnerDepthAwareGuidance": {"mode": "paper"}}
PRIOR = "10 Demo - Train a depth prior"
GUIDED = "07 Demo - DAG + SAG"
SAG = "01 Demo - Self-Attention Guidance"
RECORDED = "02 Demo - See what the model sees"
NAMES = (
    GUIDED,
    RECORDED,
    SAG,
    "06 Demo - Depth-Aware Guidance",
    "05 Demo - Depth-locked restyle",
    "08 Demo - Classifier guidance + SAG",
    "04 Demo - Depth of an image",
    "03 Demo - Watch depth form",
    "09 Demo - Train a depth head",
    PRIOR,
    "11 Demo - Train a classifier head",
    "12 Demo - Depth lock on a transformer",
)


def short(name: str) -> Prompt:
    """A demo workflow in few steps. Trainings learn from eight scenes."""
    prompt = shortened(template(name), SHORT | (UNCALIBRATED if name == PRIOR else {}))
    for node in prompt.values():
        if node["class_type"] == "InnerDemoScenes":
            node["inputs"]["count"] = min(node["inputs"]["count"], 8)
    return prompt


def on_the_transformer(prompt: Prompt) -> Prompt:
    """The same with the demo transformer, and its middle block where blocks of the UNet are recorded."""
    inputs = {
        "InnerLoadDemoModel": {"family": "transformer"},
        "KSampler": {"scheduler": "simple"},
        "InnerRecordAttention": {"blocks": "m0"},
        "InnerRecordFeatures": {"blocks": "m0"},
    }
    return shortened(prompt, inputs)


def compiled(prompt: Prompt) -> Prompt:
    """The same with the model behind the host's TorchCompileModel."""
    prompt = copy.deepcopy(prompt)
    for loader in [name for name, node in prompt.items() if node["class_type"] == "InnerLoadDemoModel"]:
        for node in prompt.values():
            node["inputs"] |= {
                name: ["compiled", 0] for name, value in node["inputs"].items() if value == [loader, 0]
            }
        prompt["compiled"] = {
            "class_type": "TorchCompileModel",
            "inputs": {"model": [loader, 0], "backend": "inductor"},
        }
    return prompt


def with_seed(prompt: Prompt, seed: int) -> Prompt:
    """The same with another seed."""
    return shortened(prompt, {"PrimitiveInt": {"value": seed}})


PROMPTS = {name: short(name) for name in NAMES} | {
    f"{name}, transformer": on_the_transformer(short(name)) for name in (GUIDED, RECORDED)
}
