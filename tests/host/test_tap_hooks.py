"""The hooks of the taps. Hooks are on modules, which all runs of a model share; a run may have a thread."""

import threading

import pytest
import torch

from inner_guidance.host.taps.hooks import forward_hook, forward_pre_hook

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
