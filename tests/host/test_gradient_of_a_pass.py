"""Gradients in the host's forward pass, in inference mode: exact, of what is read alone, without a trace."""

import threading

import pytest
import torch

from inner_guidance.host.gradients.forward import evaluate_with_gradient
from inner_guidance.tests.support.gradient_reference import (
    apply_model,
    assert_is_the_gradient,
    build,
    cotangents_of,
    layers_of,
    pass_inputs,
    plain,
    with_gradient,
)

pytestmark = pytest.mark.oldest_host


@pytest.mark.parametrize(
    ("kind", "rows", "control"),
    [
        ("small", [2, 3], False),
        ("small", [0, 1], True),
        ("sdxl", [2, 3], False),
        ("small", [0, 1, 2, 3], False),
    ],
    ids=["positive half", "negative half with ControlNet", "SDXL", "whole batch"],
)
def test_is_the_gradient_of_what_the_host_computes(kind, rows, control):
    model = build(kind)
    inputs = pass_inputs(model, control=control)
    if len(rows) == 4:
        inputs["transformer_options"] = {"cond_or_uncond": [1], "uuids": ["n"]}

    out, gradient = with_gradient(model, inputs, rows)

    assert_is_the_gradient(model, inputs, rows, gradient)
    torch.testing.assert_close(out, plain(model, inputs), rtol=1e-6, atol=1e-6)  # the host rounds to float32
    assert not out.requires_grad


def test_the_output_is_the_hosts_up_to_float32_rounding():
    model = build(dtype=torch.float32)
    inputs = pass_inputs(model, dtype=torch.float32, control=True)

    out, _ = with_gradient(model, inputs, [2, 3])

    expected = plain(model, inputs)
    # The attention of these models is peaked, and PyTorch's differs in its last bits from the host's.
    assert (out - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_weights_are_aliased_for_the_pass_and_put_back():
    model = build()
    before = {name: (t, t.data_ptr()) for name, t in [*model.named_parameters(), *model.named_buffers()]}
    during = {}

    def look(h, options):
        tensors = [*model.named_parameters(), *model.named_buffers()]
        during.update({name: (t.is_inference(), t.requires_grad, t.data_ptr()) for name, t in tensors})
        return h

    inputs = pass_inputs(model)
    inputs["transformer_options"]["patches"] = {"input_block_patch": [look]}
    with_gradient(model, inputs, [0, 1, 2, 3])

    assert any(t.is_inference() for t, _ in before.values())
    assert during == {name: (False, False, pointer) for name, (_, pointer) in before.items()}
    after = dict([*model.named_parameters(), *model.named_buffers()])
    assert all(after[name] is t for name, (t, _) in before.items())


def test_two_threads_may_differentiate_one_model():
    """The first pass to end must not put weights back that the other still needs."""
    model = build()
    inputs = pass_inputs(model) | {"transformer_options": {"cond_or_uncond": [1], "uuids": ["n"]}}
    rows = [0, 1, 2, 3]
    expected = with_gradient(model, inputs, rows)[1]
    in_first, in_second, first_ended = threading.Event(), threading.Event(), threading.Event()
    found = {}

    def first(h, options):
        in_first.set()
        in_second.wait(0.1)
        return h

    def second(h, options):
        in_second.set()
        first_ended.wait(10)
        return h

    def run(patch):
        options = inputs["transformer_options"] | {"patches": {"input_block_patch": [patch]}}
        with torch.inference_mode():
            found[patch] = with_gradient(model, inputs | {"transformer_options": options}, rows)[1]

    threads = [threading.Thread(target=run, args=(patch,)) for patch in (first, second)]
    threads[0].start()
    in_first.wait(10)
    threads[1].start()
    threads[0].join()
    first_ended.set()
    threads[1].join()

    for gradient in found.values():
        torch.testing.assert_close(gradient, expected)
    assert len(found) == 2


def test_everything_is_put_back_after_an_error():
    model = build()
    before = dict(model.named_parameters())

    def fail(h, options):
        raise KeyboardInterrupt

    inputs = pass_inputs(model)
    inputs["transformer_options"]["patches"] = {"input_block_patch": [fail]}
    with pytest.raises(KeyboardInterrupt):
        with_gradient(model, inputs, [0, 1, 2, 3])

    assert all(t is before[name] for name, t in model.named_parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert not torch.is_grad_enabled() or torch.is_inference_mode_enabled()


def test_only_the_rows_that_are_read_have_a_graph_and_only_up_to_the_last_layer_read():
    model = build()
    seen = []

    def look(h, hsp, options):
        seen.append((options["cond_or_uncond"], options["block"][1], h.shape[0], h.requires_grad))
        return h, hsp

    inputs = pass_inputs(model)
    inputs["transformer_options"]["patches"] = {"output_block_patch": [look]}
    with_gradient(model, inputs, [2, 3], blocks="o1")

    # Block k's patch sees the output of block k - 1; that of block 1 is the feature, read by then.
    assert seen == [([1], k, 2, False) for k in range(4)] + [([0], k, 2, k <= 1) for k in range(4)]


def test_behind_the_last_layer_that_is_no_constant_there_is_no_graph():
    model = build()
    inputs = pass_inputs(model)
    expected = with_gradient(model, inputs, [2, 3], blocks="o1")
    seen = []

    def look(h, hsp, options):
        seen.append((options["block"][1], h.requires_grad))
        return h, hsp

    inputs["transformer_options"]["patches"] = {"output_block_patch": [look]}
    found = with_gradient(model, inputs, [2, 3], blocks="o0-o2", constant=layers_of(model, "o0,o2"))

    assert seen[4:] == [(0, True), (1, True), (2, False), (3, False)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_control_lists_of_the_caller_are_left_alone():
    model = build()
    inputs = pass_inputs(model, control=True)
    lengths = []

    def wrapper(executor, *args, **extra):
        out, _ = evaluate_with_gradient(
            executor,
            [2, 3],
            layers_of(model),
            [lambda features: (list(features.values()), cotangents_of(list(features.values())))],
            dict(
                zip(
                    ("x", "t", "c_concat", "c_crossattn", "control", "transformer_options"), args, strict=True
                )
            ),
        )
        lengths.append({name: len(entries) for name, entries in args[4].items()})
        return out

    apply_model(model, inputs, wrapper)

    assert lengths == [{"middle": 1, "output": 3}]


def test_checkpointing_changes_nothing():
    model = build()
    inputs = pass_inputs(model)
    expected = with_gradient(model, inputs, [2, 3])

    found = with_gradient(model, inputs, [2, 3], checkpointing=True)

    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert not any("forward" in vars(module) for module in model.modules())


def test_blocks_that_are_computed_again_find_the_options_that_they_had():
    model = build()
    inputs = pass_inputs(model)
    seen = []

    def patch(n, context, value, extra_options):
        seen.append(
            (*extra_options["block"], extra_options["block_index"], extra_options["transformer_index"])
        )
        return n, context, value

    inputs["transformer_options"]["patches"] = {"attn1_patch": [patch]}
    with_gradient(model, inputs, [0, 1, 2, 3], checkpointing=True)
    once = list(dict.fromkeys(seen))

    assert len(once) < len(seen)
    assert once == seen[: len(once)]
    assert {seen.count(block) for block in once[:-1]} == {2}


def test_layers_that_were_not_computed_have_no_gradient():
    """A cache such as EasyCache answers in the model's place."""
    model = build()
    inputs = pass_inputs(model)
    inputs["transformer_options"]["other_wrappers"] = {
        "cache": [lambda executor, x, *args, **kwargs: torch.zeros_like(x)]
    }

    out, gradient = with_gradient(model, inputs, [2, 3])

    assert gradient is None
    assert torch.equal(out, torch.zeros_like(out))
