"""Images that a user connects, as the pack's nodes read them."""

from torch import Tensor

# The host runs a node once for each item of a list.
FROM_A_LIST = "If they come one by one, as a list, put Rebatch Images in front."


def as_rgb(images: Tensor) -> Tensor:
    """Images (N, H, W, C) as (N, H, W, 3), float32: without alpha, grey in all three channels."""
    colour = images[..., :3] if images.shape[-1] >= 3 else images[..., :1].expand(*images.shape[:-1], 3)
    return colour.float()


def require_images(images: Tensor, name: str) -> None:
    """Raises ValueError for an empty batch and for what is no batch of images. name: of the input."""
    if images.numel() == 0:
        raise ValueError(f"{name} is empty: connect at least one image.")
    if images.ndim != 4:
        raise ValueError(
            f"{name} has {images.ndim} dimensions, and images have 4 (batch, height, width, colours): check "
            "the node that makes it."
        )


def require_finite(images: Tensor, name: str) -> None:
    """Raises ValueError for values that are no numbers or infinite. name: of the input."""
    if not all(value.isfinite() for value in images.aminmax()):
        raise ValueError(
            f"{name} has values that are not finite: check the node that makes it. A VAE may overflow at its "
            "precision."
        )


def images_of(images: Tensor, count: int) -> Tensor:
    """The images (M, H, W, C) that `count` maps belong to: (count, H, W, 3), on the CPU, where the maps are.

    A video may have more images than maps; then evenly spaced ones are taken. Raises ValueError if there are
    fewer images than maps.
    """
    if len(images) < count:
        raise ValueError(
            f"image: {len(images)} image{'s' * (len(images) != 1)} cannot belong to {count} maps. Connect "
            "the decoded image of the same sampler."
        )
    return as_rgb(images[evenly_spaced(len(images), count)]).cpu()


def evenly_spaced(given: int, count: int) -> list[int]:
    """Which of `given` images `count` maps belong to."""
    return [i * given // count for i in range(count)]
