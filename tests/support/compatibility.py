"""Writes docs/compatibility.md: which nodes and samplers of the host work with which node of this pack.

make compatibility
"""

import logging
from functools import cache, partial

import comfy.samplers
import torch

from inner_guidance.nodes.record import InnerRecordAttention
from inner_guidance.tests.support import depth_models as depth
from inner_guidance.tests.support import sampler_table
from inner_guidance.tests.support import tiny_models as tiny
from inner_guidance.tests.support.classifier_models import classifier_guided
from inner_guidance.tests.support.extra_pass import MODEL_TYPES
from inner_guidance.tests.support.model_patching_nodes import behind, tried_nodes
from inner_guidance.tests.support.node_defaults import execute
from inner_guidance.tests.support.nodes_with_more import LOADERS, NODES, SAME_RESULT, Inputs, on_model
from inner_guidance.tools.setup_host import ROOT, host_folder

PAGE = ROOT / "docs" / "compatibility.md"
WORKS = "works"
STEPS = 2
# In the first of two, a flow is noise alone, and nearly so in the second: there Classifier Guidance is 0.
CLASSIFIER_STEPS = 3
LEAST = 1e-3  # of the norm: rounding moves the samples by less than 1e-4
MODELS = {"small": "UNet", "flux": "Flux", "sd3": "SD3"}
TEXT = """# Compatibility with ComfyUI's model-patching nodes

Made by `make compatibility`: two steps of a tiny model with random weights, three with Classifier Guidance,
with the node before and behind one of this pack. *Works* means that the result is finite and that each
guidance changes it (Record Attention must not); a second run with SAG + DAG gives the same. Each node is
tried on the first of a UNet, Flux and SD3 on which it has an effect, else on the first that takes it. On Flux
and SD3, Depth-Aware Guidance has a `latent` head, and Classifier Guidance is not tried.

| node | model | {columns} |
|---|---|{rules}
{rows}

## Nodes that need more than a model

The same with LoRAs, ControlNets, prompts and other models, on the tiny UNet. The difference of two random
models has flat attention, and ConditioningSetTimestepRange leaves the second step without a prompt; of these
the warnings say so. TorchCompileModel: one block, with the backend eager, after a run without guidance.

| node | {columns} |
|---|{rules}
{rows_with_more}

## Samplers

{images} images of the demo model in {steps} steps of {scheduler} at CFG {cfg}, drawn to the depth map of
another scene by `target_scale` 1. The figures are the distance of their depth to it, *without* and *with*
guidance, in units of Euler's with guidance; with guidance it must be below the distance without and below
{farthest}. *SAG*: the share by which it changes the samples of a tiny model that DAG guides too; a second run
of both gives the same.

| sampler | without | with | SAG |
|---|---|---|---|
{sampler_rows}
"""


def dag(model):
    head = depth.head() if model.model.latent_format.latent_channels == 4 else depth.latent_head(model)
    return depth.depth_guided(model, depth_head=head, target_depth=depth.target())


def recorded(model):
    return execute(InnerRecordAttention, model=model)[0]


def sag_and_dag(model):
    return dag(tiny.guided(model))


GUIDANCES = {
    "SAG": tiny.guided,
    "DAG": dag,
    "SAG + DAG": sag_and_dag,
    "Record Attention": recorded,
    "Classifier Guidance": classifier_guided,
}


def sampled(kind, *changes, steps=STEPS):
    """The samples after these changes of the Inputs."""
    torch.manual_seed(0)
    run = Inputs(tiny.patcher(kind, MODEL_TYPES[kind]), tiny.prompt(0), tiny.prompt(1))
    for change in changes:
        run = change(run)
    latent = torch.zeros(1, 4 if kind == "small" else 16, 16, 16)
    return tiny.sample(run.model, latent, positive=run.positive, negative=run.negative, steps=steps).double()


@cache
def unchanged(kind):
    """The samples without any node."""
    return sampled(kind)


class Warnings(logging.Handler):
    """The warnings of a run."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.sentences = []

    def emit(self, record):
        self.sentences.append(record.getMessage())


def kind_for(change):
    """The first kind of tiny model whose result the node changes, or that takes it; the result behind it."""
    taken = []
    for kind in MODEL_TYPES:
        try:
            plain = sampled(kind, change)
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
        taken.append((kind, plain))
        if (plain - unchanged(kind)).norm() > LEAST * plain.norm():
            return taken[-1]
    return taken[0]


def run(kind, *changes, steps):
    """The samples, or the sentence of a refusal, and the first warning, if any."""
    warnings = Warnings()
    logging.getLogger().addHandler(warnings)
    try:
        return sampled(kind, *changes, steps=steps), next(iter(warnings.sentences), None)
    except ValueError as error:
        return str(error), None
    finally:
        logging.getLogger().removeHandler(warnings)


def cell(kind, change, name, plain, alone, behind=True):
    """What the table says of this guidance with the node, before it and, if that is possible, behind it.

    alone: the results with SAG and with DAG.
    """
    guide = on_model(GUIDANCES[name])
    steps = STEPS
    if name == "Classifier Guidance":
        steps, plain = CLASSIFIER_STEPS, sampled(kind, change, steps=CLASSIFIER_STEPS)
    said = []
    for first, then in ((change, guide), (guide, change))[: 1 + behind]:
        result, warning = run(kind, first, then, steps=steps)
        if isinstance(result, str):
            said.append(f"refused: {result}")
            continue
        others = (name == "SAG + DAG" and alone) or [plain]
        changes = [float((result - other).norm() / plain.norm()) for other in others]
        if not result.isfinite().all():
            said.append("FAULT: not finite")
        elif warning:
            said.append(f"warned: {warning}")
        elif (max(changes) > 1e-4) if name == "Record Attention" else (min(changes) < LEAST):
            said.append(f"FAULT: changed by {', '.join(f'{c:.1e}' for c in changes)}")
        elif name == "SAG + DAG" and first is change and not result.equal(sampled(kind, first, then)):
            said.append("FAULT: a second run differs")
        else:
            said.append(WORKS)
        if first is change and name in ("SAG", "DAG"):
            alone.append(result)
    behind_ours = "" if said[0] == said[-1] else f"; behind ours: {said[-1]}"
    return " ".join((said[0] + behind_ours).replace("|", "/").split())


def row(name, node):
    """The line of the table for a node of the host."""
    change = on_model(partial(behind, node, name))
    kind, plain = kind_for(change)
    alone = []
    cells = [
        "not tried"
        if guide is classifier_guided and kind != "small"
        else cell(kind, change, of, plain, alone)
        for of, guide in GUIDANCES.items()
    ]
    return f"| {name} | {MODELS[kind]} | {' | '.join(cells)} |"


def row_with_more(name):
    """The line of the second table, on the UNet."""
    change = NODES[name]
    plain, alone = sampled("small", change), []
    acts = (plain - unchanged("small")).norm() > LEAST * plain.norm()
    if acts == (name in SAME_RESULT):
        return f"| {name} | FAULT: the effect of the node itself |"
    cells = [cell("small", change, of, plain, alone, behind=name not in LOADERS) for of in GUIDANCES]
    return f"| {name} | {' | '.join(cells)} |"


def main():
    """Write the page."""
    with torch.inference_mode():
        rows = [row(name, node) for name, node in sorted(tried_nodes(host_folder()).items())]
        rows_with_more = [row_with_more(name) for name in NODES]
        sampler_rows = [sampler_table.row(name) for name in comfy.samplers.KSampler.SAMPLERS]
    PAGE.write_text(
        TEXT.format(
            columns=" | ".join(GUIDANCES),
            rules="---|" * len(GUIDANCES),
            rows="\n".join(rows),
            rows_with_more="\n".join(rows_with_more),
            images=sampler_table.IMAGES,
            steps=sampler_table.STEPS,
            scheduler=sampler_table.SCHEDULER,
            cfg=sampler_table.CFG,
            farthest=sampler_table.FARTHEST,
            sampler_rows="\n".join(sampler_rows),
        ),
        encoding="utf-8",
    )
