"""Draws the same scenes without and with guidance in the real ComfyUI: `make demo`.

Runs demo workflows on six prompts. In these workflows the node titled "Prompt", if there is one, holds the
text, the one titled "Seed" the seed, "The image that gives the depth" the scene whose depth is kept, and the
title of a SaveImage node says what its picture shows: one title, one picture, whichever workflow draws it.
"""

import copy
import io
import json
import sys
import time
from collections import defaultdict
from typing import Any

from PIL import Image
from tqdm import tqdm

from .contact_sheet import contact_sheet
from .host_server import HostServer, HostServerError, Prompt
from .setup_host import ROOT, SetupError, host_folder

OUTPUT = ROOT / ".demo"
DEPTH_GIVEN = "The image that gives the depth"
# Neighbours draw the same picture without guidance, which the host then draws once.
WORKFLOWS = (
    "01 Demo - Self-Attention Guidance",
    "02 Demo - See what the model sees",
    "07 Demo - DAG + SAG",
    "06 Demo - Depth-Aware Guidance",
    "05 Demo - Depth-locked restyle",
)
# Prompt, seed, and the demo scene whose depth is kept. It has the shapes that the prompt names, because two
# solids do not fit into the depth of one: they merge, or one is missing. It is one of twelve such scenes, in
# which all solids came out (docs/results/protocol.md).
SCENES = (
    ("red sphere, blue box, grey checker floor, white wall", 7, 1_100_056),
    ("green cylinder, yellow sphere, brown striped floor, beige wall", 9, 1_100_219),
    ("purple box, orange cylinder, plain grey floor, blue wall", 2, 1_100_088),
    ("cyan sphere, pink sphere, blue checker floor, grey wall", 4, 1_100_816),
    ("white cylinder, black box, red striped floor, green wall", 0, 1_100_048),
    ("yellow box, red cylinder, blue sphere, green checker floor, pink wall", 3, 1_100_310),
)

# Rows that stand in the sheet with a remark.
REMARKS = {
    "No prompt, with Self-Attention Guidance": "sharper solids; faint patches on some walls",
    "With both guidances": "sharper; at CFG 3 the Frechet distance does not fall",
    "With the depth locked": "solids move to the depth above",
}
LOOK_FOR = (
    'Compare "No prompt, without guidance" with "No prompt, with Self-Attention Guidance": on average solids '
    "are sharper, and more of them can be recognised; some walls get faint patches. "
    'Look for "Depth that came out", which follows "Depth to keep" while "Depth without guidance" does not. '
    "The scenes to keep were picked; with others, some colours land on the wrong solid, and some solids are "
    "split or missing."
)


def node_titled(prompt: Prompt, title: str) -> dict[str, Any]:
    """The inputs of the one node with this title."""
    (node,) = (node for node in prompt.values() if node["_meta"]["title"] == title)
    return node["inputs"]


def for_scene(workflow: Prompt, text: str, seed: int, depth_of: int) -> Prompt:
    """A demo workflow that draws one image of this prompt, if it has a node "Prompt", and seed.

    depth_of: the scene whose depth it keeps, if any.
    """
    prompt = copy.deepcopy(workflow)
    node_titled(prompt, "Seed")["value"] = seed
    for node in prompt.values():
        inputs = node["inputs"]
        if node["_meta"]["title"] == "Prompt":
            inputs["text" if "text" in inputs else "value"] = text  # "value" where several nodes read it
        if node["_meta"]["title"] == DEPTH_GIVEN:
            inputs["first_seed"] = depth_of
        if node["class_type"] == "EmptyLatentImage":
            inputs["batch_size"] = 1
    return prompt


def steps_of(prompt: Prompt) -> dict[str, int]:
    """The number of sampling steps of each node that samples, by node id."""
    return {
        node_id: node["inputs"]["steps"]
        for node_id, node in prompt.items()
        if node["class_type"] == "KSampler"
    }


def draw(server: HostServer, prompt: Prompt, bar: tqdm) -> dict[str, bytes]:
    """Run one graph, the bar following its sampling steps; PNG files by the title of their SaveImage node."""
    done = dict.fromkeys(steps_of(prompt), 0)

    def advance(node: str, step: int, _: int) -> None:
        if node in done:
            bar.update(step - done[node])
            done[node] = step

    files = server.run(prompt, advance)
    bar.update(sum(steps_of(prompt).values()) - sum(done.values()))  # samplers that the host had in its cache
    savers = [node_id for node_id, node in prompt.items() if node["class_type"] == "SaveImage"]
    return {prompt[node_id]["_meta"]["title"]: files[node_id][0] for node_id in savers}


def main() -> None:
    """Draw all scenes, write the pictures and the sheet, print where they are."""
    start = time.monotonic()
    workflows = [
        json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
        for name in WORKFLOWS
    ]
    OUTPUT.mkdir(exist_ok=True)
    rows: defaultdict[str, list[Image.Image]] = defaultdict(list)
    print("Starting ComfyUI ...", flush=True)
    with HostServer(host_folder(), ROOT, log=OUTPUT / "server.log") as server:
        total = len(SCENES) * sum(sum(steps_of(workflow).values()) for workflow in workflows)
        with tqdm(total=total, unit="step", desc="Sampling") as bar:
            for text, seed, depth_of in SCENES:
                pictures: dict[str, bytes] = {}
                for workflow in workflows:
                    pictures |= draw(server, for_scene(workflow, text, seed, depth_of), bar)
                for title, png in pictures.items():
                    (OUTPUT / f"{seed} {title}.png").write_bytes(png)
                    rows[title].append(Image.open(io.BytesIO(png)).convert("RGB"))
    sheet = OUTPUT / "contact-sheet.png"
    remarked = {
        ": ".join(filter(None, (title, REMARKS.get(title)))): images for title, images in rows.items()
    }
    contact_sheet([f"{text} (seed {seed})" for text, seed, _ in SCENES], remarked).save(sheet)
    print(f"{sum(map(len, rows.values()))} images in {time.monotonic() - start:.0f} seconds: {OUTPUT}")
    print(f"Side by side: {sheet}\n{LOOK_FOR}")


if __name__ == "__main__":
    try:
        main()
    except (SetupError, HostServerError) as error:
        sys.exit(f"make demo: {error}")
    except KeyboardInterrupt:
        sys.exit("make demo: interrupted; the server is stopped.")
