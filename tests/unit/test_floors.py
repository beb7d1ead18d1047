"""The floors of docs/architecture.md, read from the imports in the source: no import runs up."""

import ast
import re
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACK = "inner_guidance"
# What a sampler or a node runs, the lowest floor first. A part imports itself and what is below.
FLOORS = (
    "guidance",
    "pictures",
    "depth_head",
    "classifier_head",
    "host.keys",
    "host.live_preview",
    "host.taps",
    "host.sampling",
    "host.gradients",
    "host.depth",
    "host.classifier",
    "host.recording",
    "host.steering",
    "demo",
    "nodes",
)
TENSORS_AND_PICTURES = {"torch", "numpy", "scipy", "kornia", "PIL", "safetensors"}
# Of demo/, the host loads the model and the world, not what trains and measures them.
OF_DEMO = {
    f"demo.{name}"
    for name in (
        "autoencoder",
        "labelled_scenes",
        "latent_format",
        "model",
        "ray_casting",
        "scenes",
        "text",
        "transformer",
    )
}


def modules(folder):
    """The modules below a folder, by name: {"host.taps.blocks": path}."""
    paths = (ROOT / folder).rglob("*.py")
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


@cache
def imports(path):
    """What a module imports anywhere in it, by full name; modules of the pack as inner_guidance.X."""
    package = (PACK, *path.relative_to(ROOT).parts[:-1])
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {".".join((*base, name)) for name in names}
    return found


def of_pack(path):
    """The modules of the pack that a module imports."""
    return {name.removeprefix(f"{PACK}.") for name in imports(path) if name.startswith(f"{PACK}.")}


def floor(module):
    """The number of the floor that a module is on."""
    (number,) = (i for i, part in enumerate(FLOORS) if re.match(rf"{re.escape(part)}(\.|$)", module))
    return number


PARTS = {
    name: path
    for folder in dict.fromkeys(part.split(".")[0] for part in FLOORS)
    for name, path in modules(folder).items()
}


@pytest.mark.parametrize("name", [name for name in PARTS if name not in ("host", "demo")])
def test_no_import_runs_up(name):
    above = {module for module in of_pack(PARTS[name]) if floor(module) > floor(name)}

    assert above == set()


@pytest.mark.parametrize("folder", ["guidance", "pictures", "depth_head", "classifier_head"])
def test_mathematics_and_pictures_know_nothing_of_the_host(folder):
    known = TENSORS_AND_PICTURES | sys.stdlib_module_names | {PACK}
    imported = {name.split(".")[0] for path in modules(folder).values() for name in imports(path)}

    assert "torch" in imported
    assert imported - known == set()


def test_heads_know_nothing_of_guidance():
    assert not any(
        name.startswith("guidance")
        for folder in ("depth_head", "classifier_head")
        for path in modules(folder).values()
        for name in of_pack(path)
    )


def test_the_host_loads_no_script():
    """From the entry point on: no benchmark, no experiment, no tool, no training of the demo model."""
    loaded, found = set(), of_pack(ROOT / "__init__.py")
    while found:
        assert found <= {name for name in PARTS if not name.startswith("demo.") or name in OF_DEMO}
        loaded |= found
        found = {name for module in found for name in of_pack(PARTS[module])} - loaded

    assert {"nodes.self_attention_guidance", "host.steering.sag_step", "guidance.self_attention"} <= loaded
