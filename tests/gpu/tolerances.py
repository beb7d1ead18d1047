"""How far a result may be from the CPU's in float32, by the precision of the model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """Largest deviations from the CPU's result in float32, for the demo model in four steps.

    plain: of a latent without guidance, relative to it. guidance: of what guidance adds to a latent, relative
    to that. picture: mean of the absolute difference of two pictures in [0, 1].
    """

    plain: float
    guidance: float
    picture: float


# From exact to coarse. bfloat16 weights alone, computed with in float32, are within half of theirs.
TOLERANCES = {
    "float32": Tolerance(plain=0.01, guidance=0.05, picture=0.01),
    "float16": Tolerance(plain=0.02, guidance=0.1, picture=0.02),
    "bfloat16": Tolerance(plain=0.1, guidance=0.5, picture=0.05),
}
