"""What taps put on modules, which all runs of a model share: it acts in its thread alone."""

import threading

import pytest
import torch

from inner_guidance.host.taps.hooks import forward_hook, forward_pre_hook
from inner_guidance.host.taps.overridden_attention import overridden

pytestmark = pytest.mark.oldest_host


@pytest.mark.parametrize("hooked", [forward_hook, forward_pre_hook])
def test_a_hook_sees_the_passes_of_its_thread_until_the_context_ends(hooked):
    module, seen = torch.nn.Identity(), []

    with hooked(module, lambda *_: seen.append(threading.get_ident())):
        module(1)
        other = threading.Thread(target=module, args=(2,))
        other.start()
        other.join()
    module(3)

    assert seen == [threading.get_ident()]


def optimized_attention(x):
    """The global name that models call."""
    return x


class Attends(torch.nn.Module):
    def forward(self, x):
        return optimized_attention(x)


def test_an_overridden_attention_is_that_of_its_thread_in_whatever_order_they_end():
    module, seen = Attends(), []
    entered, ended = threading.Event(), threading.Event()

    def override(name):
        return overridden(module, lambda attention, x: (seen.append(name), attention(x))[1])

    def other():
        with override("other"):
            entered.set()
            ended.wait(10)
            module(3)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(10)
    with override("first"):
        module(1)
        with override("nested"):
            module(2)
    assert seen == ["first", "nested", "first"]
    ended.set()
    thread.join()
    module(4)

    assert seen == ["first", "nested", "first", "other"]
    assert "forward" not in vars(module)
