"""Model function wrappers as other nodes set them: they evaluate the latent in tiles, or change it."""

import torch
import torch.nn.functional as F


def wrapped(model, wrapper):
    """The model with a model_function_wrapper."""
    model = model.clone()
    model.set_model_unet_function_wrapper(wrapper)
    return model


def at(box):
    """The index of a box (top, left, height, width)."""
    top, left, height, width = box
    return ..., slice(top, top + height), slice(left, left + width)


def tiled(boxes, per_pass=1):
    """Tiled diffusion: `per_pass` tiles in a pass, one after the other; where they overlap, their mean."""

    def wrapper(apply_model, args):
        x, c = args["input"], dict(args["c"])
        context = c.pop("c_crossattn")
        total, times = torch.zeros_like(x), torch.zeros_like(x)
        for i in range(0, len(boxes), per_pass):
            group = boxes[i : i + per_pass]
            tiles = torch.cat([x[at(box)] for box in group])
            out = apply_model(
                tiles,
                args["timestep"].repeat(len(group)),
                c_crossattn=context.repeat(len(group), 1, 1),
                **c,
            )
            for box, of_tile in zip(group, out.chunk(len(group)), strict=True):
                total[at(box)] += of_tile
                times[at(box)] += 1
        return total / times

    return wrapper


def through(change, back):
    """Evaluates another latent than the sampler's, and takes the change back of what the model returns."""

    def wrapper(apply_model, args):
        return back(apply_model(change(args["input"]), args["timestep"], **args["c"]))

    return wrapper


def reordered(order):
    """Evaluates the rows of the batch in another order, and labels them as before.

    order: of the longest batch; those rows of it that a shorter one has.
    """

    def wrapper(apply_model, args):
        rows = [row for row in order if row < len(args["input"])]
        c = args["c"] | {"c_crossattn": args["c"]["c_crossattn"][rows]}
        out = apply_model(args["input"][rows], args["timestep"][rows], **c)
        return out[torch.tensor(rows).argsort()]

    return wrapper


def rolled(rows, columns):
    """As nodes for seamless pictures and for random tile borders do it."""
    return through(
        lambda x: x.roll((rows, columns), (-2, -1)), lambda out: out.roll((-rows, -columns), (-2, -1))
    )


def resize(x, height, width):
    return F.interpolate(x, (height, width), mode="bilinear")


def untraceable():
    """Wrappers after which nobody can tell where in the latent the model looks."""
    return {
        "flipped": through(lambda x: x.flip(-1), lambda out: out.flip(-1)),
        "transposed": through(lambda x: x.transpose(-1, -2), lambda out: out.transpose(-1, -2)),
        "resized": through(lambda x: resize(x, 8, 24), lambda out: resize(out, 16, 48)),
        "padded": through(lambda x: F.pad(x, (4, 4, 4, 4), "reflect"), lambda out: out[..., 4:-4, 4:-4]),
        "padded to the same size": through(
            lambda x: F.pad(x[..., 2:-2], (2, 2)), lambda out: F.pad(out[..., 2:-2], (2, 2))
        ),
        "cropped": through(lambda x: x[..., 8:40], lambda out: F.pad(out, (8, 8))),
        "noised": through(lambda x: x + 0.1 * x.roll(1, -1), lambda out: out),
        "one tile resized": one_tile_resized,
    }


def one_tile_resized(apply_model, args):
    """Three tiles; the last one is wider than the rest of the latent, and shrunk."""
    x = args["input"]
    parts = [
        apply_model(x[..., :16], args["timestep"], **args["c"]),
        apply_model(x[..., 16:32], args["timestep"], **args["c"]),
        resize(apply_model(resize(x[..., 24:], 16, 16), args["timestep"], **args["c"]), 16, 24)[..., 8:],
    ]
    return torch.cat(parts, dim=-1)
