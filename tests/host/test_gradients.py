"""Gradients inside the host's forward pass, on its own models, within inference mode."""

import comfy.model_base
import comfy.model_patcher
import comfy.ops
import pytest
import tiny_models as tiny
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.patcher_extension import WrappersMP

from inner_guidance.guidance.host.blocks import feature_blocks, parse_blocks
from inner_guidance.guidance.host.differentiable_weights import refuse_quantised
from inner_guidance.guidance.host.feature_tap import FeatureTap
from inner_guidance.guidance.host.gradients import evaluate_with_gradient, refuse_uncontrollable_compiler

BLOCKS = "o1,o2"
CHUNKS = 2


def build(kind="small", dtype=torch.float64, compute=None, seed=0):
    """A model of its own, so that a test may change its weights."""
    unet_config = {"small": tiny.SMALL, "sd15": tiny.SD15, "sdxl": tiny.SDXL}[kind] | {"dtype": dtype}
    config = tiny.Config(dict(unet_config))
    config.set_inference_dtype(dtype, compute)
    model_class = comfy.model_base.SDXL if kind == "sdxl" else comfy.model_base.BaseModel
    model = model_class(config, tiny.ModelType.EPS, device=tiny.CPU)
    tiny.initialise(model, seed)
    return model


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pass_inputs(model, batch=2, dtype=torch.float64, control=False):
    """What an APPLY_MODEL wrapper gets: the negative's chunk, then the positive's."""
    rows = CHUNKS * batch
    inputs = {
        "x": random(rows, 4, 8, 12, dtype=dtype) * 2,
        "t": torch.full((rows,), 1.5, dtype=dtype),
        "c_concat": None,
        "c_crossattn": random(rows, 7, tiny.CONTEXT, seed=1, dtype=dtype),
        "control": None,
        "transformer_options": {"cond_or_uncond": [1, 0], "uuids": ["n", "p"]},
    }
    if control:
        shapes = ((rows, 32, 8, 12), (rows, 64, 4, 6))
        inputs["control"] = {
            "middle": [random(*shapes[1], seed=2, dtype=dtype)],
            "output": [
                random(*shapes[0], seed=3, dtype=dtype),
                None,
                random(*shapes[1], seed=4, dtype=dtype),
            ],
        }
    if model.diffusion_model.num_classes is not None:
        inputs["y"] = random(rows, model.diffusion_model.label_emb[0][0].in_features, seed=5, dtype=dtype)
    return inputs


def apply_model(model, inputs, wrapper):
    """The model's answer with an APPLY_MODEL wrapper of ours; `inputs` may be used again."""
    inputs = dict(inputs)
    options = dict(inputs.pop("transformer_options"))
    options["wrappers"] = {WrappersMP.APPLY_MODEL: {"test": [wrapper], **options.get("other_wrappers", {})}}
    copied = {
        name: {key: list(value) for key, value in inputs["control"].items()}
        for name in ("control",)
        if inputs["control"]
    }
    return model.apply_model(transformer_options=options, **inputs | copied)


def layers_of(model, blocks=BLOCKS):
    return parse_blocks(blocks, feature_blocks(model.diffusion_model))


def cotangents_of(features):
    return [random(*f.shape, seed=10 + i, dtype=f.dtype) for i, f in enumerate(features)]


def with_gradient(model, inputs, rows, blocks=BLOCKS, **kwargs):
    """The output, and the gradient of sum_i c_i f_i for fixed random c_i."""
    layers = layers_of(model, blocks)
    found = []

    def products(features):
        outputs = [features[layer] for layer in layers if layer not in kwargs.get("constant", ())]
        return outputs, cotangents_of(outputs)

    def wrapper(executor, *args, **extra):
        named = dict(
            zip(("x", "t", "c_concat", "c_crossattn", "control", "transformer_options"), args, strict=True)
        )
        out, gradient = evaluate_with_gradient(executor, rows, layers, products, named | extra, **kwargs)
        found.append(gradient)
        return out

    return apply_model(model, inputs, wrapper), found[0]


def plain(model, inputs):
    return apply_model(model, inputs, lambda executor, *args, **extra: executor(*args, **extra))


def energy(model, inputs, rows, blocks=BLOCKS):
    """sum_i c_i f_i of the host's plain pass of the whole batch, over these rows."""
    layers, features = layers_of(model, blocks), {}

    def wrapper(executor, x, t, c_concat, c_crossattn, *args, **extra):
        tap = FeatureTap(layers, lambda layer, f: features.update({layer: f.clone()}))
        with tap.reading(model.diffusion_model, x, c_crossattn):
            return executor(x, t, c_concat, c_crossattn, *args, **extra)

    apply_model(model, inputs, wrapper)
    of_rows = [features[layer][list(rows)] for layer in layers]
    return float(sum((c * f).sum() for c, f in zip(cotangents_of(of_rows), of_rows, strict=True)))


def assert_is_the_gradient(model, inputs, rows, gradient, step=1e-7, directions=4):
    """Central differences along random directions of the rows' latents."""
    for seed in range(directions):
        direction = torch.zeros_like(inputs["x"])
        direction[list(rows)] = random(*gradient.shape, seed=20 + seed)
        ends = [
            energy(model, inputs | {"x": inputs["x"] + sign * step * direction}, rows) for sign in (1, -1)
        ]
        expected = (ends[0] - ends[1]) / (2 * step)
        assert float((gradient * direction[list(rows)]).sum()) == pytest.approx(expected, rel=1e-5)


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

    # Block k's patch sees the output of block k - 1; that of block 1 is the feature itself.
    assert seen == [([1], k, 2, False) for k in range(4)] + [([0], k, 2, k <= 2) for k in range(4)]


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

    assert seen[4:] == [(0, True), (1, True), (2, True), (3, False)]
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
            lambda features: (list(features.values()), cotangents_of(list(features.values()))),
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


def cast_weights(model):
    """As the host does it for offloaded and for half-precision weights."""
    for module in model.modules():
        if isinstance(module, comfy.ops.CastWeightBiasOp):
            module.comfy_cast_weights = True


@pytest.mark.parametrize("checkpointing", [False, True])
def test_weights_that_are_cast_at_use_give_the_same_gradient(checkpointing):
    model = build()
    inputs = pass_inputs(model)
    expected = with_gradient(model, inputs, [2, 3])
    cast_weights(model)

    found = with_gradient(model, inputs, [2, 3], checkpointing=checkpointing)

    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert not any("forward" in vars(module) for module in model.modules())


def pad_by_the_other_edge(conv):
    """As nodes for seamless textures do it."""

    def conv_forward(x, weight, bias):
        across = torch.nn.functional.pad(x, (1, 1, 0, 0), mode="circular")
        return torch.nn.functional.conv2d(
            torch.nn.functional.pad(across, (0, 0, 1, 1)), weight, bias, conv.stride
        )

    conv._conv_forward = conv_forward


def pad_by_reflection(conv):
    conv.padding_mode = "reflect"


@pytest.mark.parametrize("change", [pad_by_the_other_edge, pad_by_reflection])
def test_convolutions_that_another_node_pads_differently(change):
    model = build()
    cast_weights(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.padding == (1, 1):
            change(module)
    inputs = pass_inputs(model)

    _, gradient = with_gradient(model, inputs, [2, 3])

    assert_is_the_gradient(model, inputs, [2, 3], gradient, directions=2)


def test_a_cast_weight_is_not_kept_for_the_backward_pass(monkeypatch):
    """Whatever the host's buffer holds by then: here it is overwritten as soon as the layer has run."""
    model = build()
    inputs = pass_inputs(model)
    expected = with_gradient(model, inputs, [2, 3])
    cast_weights(model)
    cast, uncast = comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight

    def into_a_buffer(s, *args, **kwargs):
        weight, bias, stream = cast(s, *args, **kwargs)
        return weight.clone(), None if bias is None else bias.clone(), stream

    def overwrite(s, weight, bias, stream):
        uncast(s, weight, bias, stream)
        weight.data.fill_(torch.nan)

    monkeypatch.setattr(comfy.ops, "cast_bias_weight", into_a_buffer)
    monkeypatch.setattr(comfy.ops, "uncast_bias_weight", overwrite)

    _, gradient = with_gradient(model, inputs, [2, 3])

    torch.testing.assert_close(gradient, expected[1], rtol=1e-9, atol=1e-12)


def test_patches_on_the_fly_are_in_the_gradient():
    """LoRAs on weights that are not in the GPU's memory are applied whenever the layer runs."""
    model, baked = build(), build()
    for one, other in zip(model.modules(), baked.modules(), strict=True):
        if isinstance(one, (torch.nn.Linear, torch.nn.Conv2d)):
            delta = random(*one.weight.shape, seed=30) * 0.05
            one.weight_function = [lambda weight, delta=delta: weight + delta]
            other.weight.add_(delta)
    inputs = pass_inputs(model)

    found, expected = with_gradient(model, inputs, [2, 3]), with_gradient(baked, inputs, [2, 3])

    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("storage", "compute"), [("float16", "float32"), ("float8_e4m3fn", "float32")])
def test_weights_stored_in_another_precision_than_the_computation(storage, compute):
    storage, compute = getattr(torch, storage), getattr(torch, compute)
    model, stored = build(dtype=compute), build(dtype=torch.float16, compute=compute)
    stored.diffusion_model.to(storage)
    for parameter, source in zip(model.parameters(), stored.parameters(), strict=True):
        parameter.copy_(source.to(compute))
    inputs = pass_inputs(model, dtype=compute)

    _, expected = with_gradient(model, inputs, [2, 3])
    _, found = with_gradient(stored, inputs, [2, 3])

    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("dtype", "cosine"), [(torch.bfloat16, 0.98), (torch.float16, 0.998)])
def test_models_that_compute_in_half_precision(dtype, cosine):
    model, exact = build(dtype=dtype), build(dtype=torch.float32)
    for (name, source), parameter in zip(model.named_parameters(), exact.parameters(), strict=True):
        if "to_q" in name:  # the peaked attention of these models makes much of every rounding
            source.mul_(0.05)
        parameter.copy_(source.float())
    inputs = pass_inputs(exact, dtype=torch.float32)

    _, expected = with_gradient(exact, inputs, [2, 3])
    _, found = with_gradient(model, inputs, [2, 3])

    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > cosine


@torch.library.custom_op("inner_guidance_test::attention", mutates_args=())
def without_a_formula(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    return attention_pytorch(q, k, v, heads).clone()


def cut_off(attention, q, k, v, heads, **kwargs):
    """As sage attention: another kernel, which autograd does not see."""
    return attention_pytorch(q.detach(), k.detach(), v.detach(), heads, **kwargs).detach()


def custom_operator(attention, q, k, v, heads, **kwargs):
    """As flash attention in the host."""
    return without_a_formula(q, k, v, heads)


@pytest.mark.parametrize("override", [cut_off, custom_operator])
def test_an_attention_without_backward_gets_that_of_plain_attention(override):
    model = build()
    inputs = pass_inputs(model)
    expected = with_gradient(model, inputs, [2, 3])
    inputs["transformer_options"]["optimized_attention_override"] = override

    found = with_gradient(model, inputs, [2, 3])

    torch.testing.assert_close(found[1], expected[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)


def test_the_hosts_own_kernel_is_replaced_where_a_gradient_is_wanted(monkeypatch):
    model = build()
    inputs = pass_inputs(model)
    expected = with_gradient(model, inputs, [2, 3])
    modes = []

    @comfy.ldm.modules.attention.wrap_attn
    def sage(q, k, v, heads, **kwargs):
        modes.append(torch.is_inference_mode_enabled())
        return cut_off(None, q, k, v, heads)

    monkeypatch.setattr(comfy.ldm.modules.attention, "optimized_attention", sage)
    monkeypatch.setattr(comfy.ldm.modules.attention, "optimized_attention_masked", sage)
    _, gradient = with_gradient(model, inputs, [2, 3])

    torch.testing.assert_close(gradient, expected[1], rtol=1e-9, atol=1e-12)
    assert True in modes  # the other half
    assert False in modes  # behind the last layer that is read


def test_an_override_that_computes_something_else_keeps_its_own_gradient():
    model = build()
    inputs = pass_inputs(model)
    inputs["transformer_options"]["optimized_attention_override"] = (
        lambda attention, q, k, v, *args, **kwargs: attention(1.7 * q, k, v, *args, **kwargs) + 0.2 * q
    )

    _, gradient = with_gradient(model, inputs, [2, 3])

    assert_is_the_gradient(model, inputs, [2, 3], gradient)


def test_keys_that_another_node_has_prepared_may_be_inference_tensors():
    """As IPAdapter and regional prompts hand them to cross-attention."""
    model = build()
    inputs = pass_inputs(model)
    prompt = random(1, 5, tiny.CONTEXT, seed=40)
    assert prompt.is_inference()
    inputs["transformer_options"]["patches"] = {
        "attn2_patch": [lambda n, *_: (n, prompt.expand(len(n), -1, -1), prompt.expand(len(n), -1, -1))]
    }

    _, gradient = with_gradient(model, inputs, [2, 3])

    assert_is_the_gradient(model, inputs, [2, 3], gradient)


def adapter(width):
    """As IPAdapter: attention to an image beside that to the prompt, by a network that a loader has made."""
    network = torch.nn.Linear(tiny.CONTEXT, width, dtype=torch.float64)
    tokens = random(1, 4, tiny.CONTEXT, seed=41)

    def replaced(q, k, v, extra_options):
        heads = extra_options["n_heads"]
        image = network(tokens).expand(len(q), -1, -1)
        return attention_pytorch(q, k, v, heads) + attention_pytorch(q, image, image, heads) * tokens.std()

    assert network.weight.is_inference()
    return {"attn2": {("middle", 0): replaced}}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_patches_that_bring_tensors_of_their_own_are_in_the_gradient(checkpointing):
    model = build()
    inputs = pass_inputs(model)
    gates = random(64, 4, 6, seed=42).exp()
    assert gates.is_inference()
    inputs["transformer_options"] |= {
        "patches_replace": adapter(64),
        "patches": {"input_block_patch": [lambda h, _: h * gates if h.shape[1:] == gates.shape else h]},
    }

    _, gradient = with_gradient(model, inputs, [2, 3], checkpointing=checkpointing)

    assert_is_the_gradient(model, inputs, [2, 3], gradient, directions=2)


def test_a_compiled_model_runs_as_it_was_written():
    model = build()
    inputs = pass_inputs(model)
    expected = with_gradient(model, inputs, [2, 3])
    compiled_calls = []

    def backend(graph, example_inputs):
        def run(*args):
            compiled_calls.append(torch.is_grad_enabled())
            return graph(*args)

        return run

    block = model.diffusion_model.input_blocks[1][0]  # of one block only: tracing takes long
    block.in_layers = torch.compile(block.in_layers, backend=backend, dynamic=False)
    try:
        found = with_gradient(model, inputs, [2, 3])
    finally:
        torch._dynamo.reset()

    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert compiled_calls == [False]  # the other half


def test_without_a_way_to_switch_the_compiler_off_compiled_models_are_refused(monkeypatch):
    model = build()
    monkeypatch.delattr(torch.compiler, "set_stance")
    refuse_uncontrollable_compiler(model, {}, "Depth-Aware Guidance")

    with pytest.raises(ValueError, match=r"needs PyTorch 2\.6 or later beside torch\.compile"):
        refuse_uncontrollable_compiler(
            model, {"wrappers": {WrappersMP.APPLY_MODEL: {"torch.compile": [None]}}}, "Depth-Aware Guidance"
        )


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


class Packed(torch.Tensor):
    """A quantised weight of the host or of another pack."""


def test_quantised_weights_are_refused():
    model = build()
    refuse_quantised(model, "Depth-Aware Guidance")
    linear = model.diffusion_model.time_embed[0]
    linear.weight = torch.nn.Parameter(linear.weight.data.as_subclass(Packed), requires_grad=False)

    with pytest.raises(ValueError, match=r"quantised weights of this model \(Packed\) do not give"):
        refuse_quantised(model, "Depth-Aware Guidance")
