"""Every layout gives the same numbers, in place of the same axes, without a copy."""

import pytest
import torch
from einops import rearrange
from hypothesis import given
from hypothesis import strategies as st

from hdf_modules import DistributionalAttention
from hdf_modules.attention import Layout
from tests.support.attention import LAYOUTS, randomised


@st.composite
def clips(draw):
    sizes = {axis: draw(st.integers(1, 5), label=axis) for axis in "btchw"}
    return sizes, draw(st.integers(1, 4), label="T of the weights")


@given(clips(), st.integers(0, 2), st.integers(0, 2))
def test_all_layouts_agree(device, clip, prefix, suffix):
    sizes, num_frames = clip
    torch.manual_seed(0)
    x = torch.randn([sizes[axis] for axis in "btchw"], dtype=torch.float64, device=device)
    weight = torch.randn_like(x)
    arguments = sizes["c"], num_frames
    options = {"dct_size": 3, "dtype": torch.float64, "device": device}
    base = randomised(DistributionalAttention(*arguments, layout="b t c h w", **options))
    leaf = x.clone().requires_grad_()
    expected = base(leaf)
    (expected * weight).sum().backward()
    for layout in LAYOUTS:
        tokens = "(h w)" in layout or "t h w)" in layout or "h w t)" in layout
        extra = {"prefix_tokens": prefix, "suffix_tokens": suffix} if tokens else {}
        module = DistributionalAttention(*arguments, layout=Layout(layout, **extra), **options)
        module.load_state_dict(base.state_dict())
        laid = with_tokens(rearrange(x, f"b t c h w -> {layout}"), layout, extra)
        leaf_laid = laid.clone().requires_grad_()
        grid = (sizes["h"], sizes["w"]) if tokens else None
        y = module(leaf_laid, num_frames=sizes["t"], grid=grid)
        laid_weight = with_tokens(rearrange(weight, f"b t c h w -> {layout}"), layout, extra)
        (y * laid_weight).sum().backward()
        for ours, theirs in ((y, expected), (leaf_laid.grad, leaf.grad)):
            torch.testing.assert_close(
                without_tokens(ours, layout, extra), rearrange(theirs, f"b t c h w -> {layout}")
            )
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.grad, dict(base.named_parameters())[name].grad)


def axis_of_tokens(layout):
    return {"(h w) (b t) c": 0}.get(layout, 1)


def with_tokens(x, layout, extra):
    if not extra:
        return x
    dim = axis_of_tokens(layout)
    shape = list(x.shape)
    parts = []
    for count in (extra["prefix_tokens"], None, extra["suffix_tokens"]):
        if count is None:
            parts.append(x)
        else:
            shape[dim] = count
            parts.append(x.new_full(shape, 7.0))
    return torch.cat(parts, dim)


def without_tokens(x, layout, extra):
    if not extra:
        return x
    dim = axis_of_tokens(layout)
    count = x.shape[dim] - extra["prefix_tokens"] - extra["suffix_tokens"]
    return x.narrow(dim, extra["prefix_tokens"], count)


@pytest.mark.parametrize("layout", ["(b t) (h w) c", "(h w) (b t) c", "b (t h w) c", "b (h w t) c"])
def test_extra_tokens_pass_untouched(layout, device):
    extra = {"prefix_tokens": 2, "suffix_tokens": 3}
    laid = Layout(layout, grid=(2, 3), **extra)
    module = randomised(DistributionalAttention(4, 2, layout=laid, device=device))
    clip = torch.randn(1, 2, 4, 2, 3, device=device)
    x = with_tokens(rearrange(clip, f"b t c h w -> {layout}"), layout, extra)
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    y.sum().backward()
    dim, length = axis_of_tokens(layout), x.shape[axis_of_tokens(layout)]
    outside = torch.tensor([0, 1, length - 3, length - 2, length - 1], device=device)
    assert torch.equal(y.index_select(dim, outside), x.index_select(dim, outside))
    assert (leaf.grad.index_select(dim, outside) == 1).all()
    assert not torch.equal(without_tokens(y, layout, extra), without_tokens(x, layout, extra))


def test_state_dict_does_not_depend_on_the_layout():
    shapes = [
        {k: v.shape for k, v in DistributionalAttention(4, 2, layout=layout).state_dict().items()}
        for layout in LAYOUTS
    ]
    assert all(shape == shapes[0] for shape in shapes)


def test_memory_format_is_kept(device):
    module = randomised(DistributionalAttention(4, 3, device=device))
    x = torch.randn(2, 4, 3, 5, 6, device=device)
    expected = module(x)
    last = x.to(memory_format=torch.channels_last_3d).requires_grad_()
    y = module(last)
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(y, expected)
    (gradient,) = torch.autograd.grad(y.square().sum(), last)
    assert gradient.is_contiguous(memory_format=torch.channels_last_3d)
    folded = randomised(DistributionalAttention(4, 3, layout="(b t) c h w", device=device))
    y = folded(torch.randn(6, 4, 5, 6, device=device).to(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("step", [1, 2])
def test_strided_and_transposed_input(step, device):
    module = randomised(DistributionalAttention(4, 3, device=device))
    x = torch.randn(2, 4, 6, 7, 9, device=device)[:, :, ::2, ::step, ::step].transpose(3, 4)
    assert not x.is_contiguous()
    leaf, dense = x.clone().requires_grad_(), x.contiguous().requires_grad_()
    y, expected = module(leaf), module(dense)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(module(x), expected)
    gradients = torch.autograd.grad(y.square().sum(), leaf)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.square().sum(), dense))


def test_an_empty_batch_gives_an_empty_batch(device):
    module = DistributionalAttention(4, 3, device=device)
    assert module(torch.zeros(0, 4, 3, 5, 5, device=device)).shape == (0, 4, 3, 5, 5)
