"""A checkpoint of the user: pictures of 16 seeds without and with each guidance, and a depth head for it.

CHECKPOINT: a safetensors file; without it nothing is drawn. DEPTH_MODEL: a file of Depth Anything 3, which
labels the pictures; without it there is no head and no DAG. SIDE: pixels of a side (512). SEEDS, STEPS,
TRAINING_STEPS: for a shorter trial.
"""

import io
import os
from pathlib import Path

from PIL import Image

from inner_guidance.tests.gpu.checkpoint import PLAIN, Subject, drawing, training
from inner_guidance.tests.gpu.checks import CheckError
from inner_guidance.tests.gpu.figures import figures_table
from inner_guidance.tests.gpu.launches import CPU_LAUNCHES, LAUNCHES, TRIED
from inner_guidance.tests.support.node_defaults import with_defaults
from inner_guidance.tools.contact_sheet import contact_sheet

CHECKPOINT, DEPTH_MODEL = (os.environ.get(name, "") for name in ("CHECKPOINT", "DEPTH_MODEL"))
SIDE, SEEDS, STEPS, TRAINING_STEPS = (
    int(os.environ.get(name) or default)
    for name, default in (("SIDE", 512), ("SEEDS", 16), ("STEPS", 25), ("TRAINING_STEPS", 1000))
)
TARGET = "target.png"
ON_SHEET = 256


def linked(base, folder, file):
    """Give a server a model file."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise CheckError(f"there is no file {path.absolute()}: write the path of a model file")
    link = base / "models" / folder / path.name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(path.resolve())
    return link.name


def read_png(png):
    return Image.open(io.BytesIO(png)).convert("RGB")


def drawn(server, subject, row, seed, **more):
    """The pictures of a prompt: "picture", "depth", "read"."""
    prompt = with_defaults(drawing(subject, row, seed, **more), server.object_info())
    return {name: read_png(files[0]) for name, files in server.run(prompt).items()}


def trained_head(server, subject, pictures):
    """Train a head on these pictures; the name of its file."""
    base = Path(server.base.name)
    labelled = base / "input" / "depth_training"
    labelled.mkdir()
    for seed, picture in enumerate(pictures):
        picture.save(labelled / f"{seed:02}.png")
    server.run(training(subject, TRAINING_STEPS))
    (head,) = (base / "models" / "depth_heads").glob("*.safetensors")
    return head.name


def test_checkpoint_is_drawn(started, checked, skipped, report, folder):
    if not CHECKPOINT:
        skipped("checkpoint", "pictures without and with guidance", "there is no CHECKPOINT=")

    def draw(server):
        base = Path(server.base.name)
        subject = Subject(
            linked(base, "checkpoints", CHECKPOINT),
            DEPTH_MODEL and linked(base, "geometry_estimation", DEPTH_MODEL),
            SIDE,
            STEPS,
        )
        plain = [drawn(server, subject, PLAIN, seed) for seed in range(SEEDS)]
        head = ""
        if DEPTH_MODEL:
            plain[0]["depth"].save(base / "input" / TARGET)
            head = trained_head(server, subject, [shown["picture"] for shown in plain])
            # Again, from the host's cache: now with what the head reads.
            plain = [drawn(server, subject, PLAIN, seed, head=head) for seed in range(SEEDS)]
        rows = {PLAIN: plain} | {
            row: [drawn(server, subject, row, seed, head=head, target=TARGET) for seed in range(SEEDS)]
            for row in subject.rows
            if row != PLAIN
        }
        sheet = {
            row: [shown["picture"].resize((ON_SHEET, ON_SHEET)) for shown in of_row]
            for row, of_row in rows.items()
        }
        path = folder / "checkpoint.jpg"
        contact_sheet([f"seed {seed}" for seed in range(SEEDS)], sheet).save(path, quality=88)
        report.sections[f"{subject.checkpoint}, {SEEDS} seeds"] = figures_table(rows)
        return f"contact sheet: {path}"

    with started((CPU_LAUNCHES if TRIED else LAUNCHES)[0]) as server:
        checked("checkpoint", Path(CHECKPOINT).name, draw, server)
