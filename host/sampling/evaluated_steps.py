"""To which step of the schedule an evaluation belongs, for samplers with several of them in a step."""

import math

from torch import Tensor

from .schedule import TOLERANCE, step_of, steps_at


class EvaluatedSteps:
    """The steps of one run, from the evaluations that the sampler asks for in turn.

    Methods of second order evaluate twice in a step: at a sigma before the next one (DPM-Solver-2), or at
    the next one (Heun, DPM-Solver-2 ancestral), where the next step begins with an evaluation too. The second
    kind is known by two evaluations in succession at one sigma, unless the schedule has that sigma twice. So
    in its first step the second one counts as the next step's.

    A guidance must act in both evaluations of a step or in none. These methods divide what changes from the
    first to the second by the smaller sigma: with a shift s of D in the first alone, DPM-Solver-2 moves x by

        -(sigma - sigma_next) / sigma_mid * (1 - sigma_mid / sigma) s,

    away from where s points, and in long steps several times as far. For the same reason Depth-Aware Guidance
    takes one gradient in a step and uses it in each of its evaluations: with fresh ones, four steps of
    DPM-Solver-2 ancestral on the demo model end at 1.83 of Euler's distance to a target, with one at 1.06,
    and without guidance at 1.21.

    Heun++ (heunpp2) weights its three evaluations so that a shift in some of them moves x by a part of what
    it does in all. There, each counts for its own sigma, as the ranges of the host's conditions do.
    """

    def __init__(self) -> None:
        self.last = math.inf
        self.evaluates_next = False

    def start(self, sigma: float, sample_sigmas: Tensor) -> float:
        """The sigma at which the step of this evaluation starts; call it once for each evaluation.

        Not a number, which no range holds, where there is no noise or no number: nothing can be guided there.
        """
        if not 0 < sigma < math.inf:
            return math.nan
        number = step_of(sigma, sample_sigmas)
        if math.isclose(sigma, self.last, rel_tol=TOLERANCE):
            self.evaluates_next |= number > 0 and len(steps_at(sigma, sample_sigmas)) == 1
        elif (
            self.evaluates_next
            and number > 0
            and math.isclose(sigma, float(sample_sigmas[number]), rel_tol=TOLERANCE)
        ):
            number -= 1
        self.last = sigma
        return float(sample_sigmas[number])
