"""Resizes as matrix products, which a GPU computes, against torch's own bilinear resize."""

import pytest
import torch
import torch.nn.functional as F

from wsss.resize import resize, resize_by_matrices, resize_matrix

SHAPES = [((2, 3, 24, 32), (96, 128)), ((1, 2, 25, 33), (97, 131)), ((3, 2, 60, 45), (17, 22)), ((1, 1, 1, 1), (5, 7)),
          ((2, 1, 94, 125), (375, 500)), ((1, 2, 9, 1), (4, 30)), ((1, 2, 700, 3), (701, 12))]


def values(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def by_torch(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("shape, size", SHAPES)
def test_the_product_is_the_resize_of_torch_with_its_gradient(shape, size):
    x = values(*shape).requires_grad_()
    ours, expected, weight = resize_by_matrices(x, size), by_torch(x, size), values(*shape[:2], *size)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    gradients = [torch.autograd.grad((each * weight).sum(), x)[0] for each in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_the_size_alone_gives_the_samples_of_a_scale_factor(factor):
    x = values(1, 2, 13, 21)
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize_by_matrices(x, expected.shape[2:]), expected, rtol=0, atol=1e-6)
    assert torch.equal(resize(x, expected.shape[2:]), expected)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (2, 2, 3), (0,), (2, 0)])
def test_any_leading_dimensions(leading):
    x = values(*leading, 12, 17, dtype=torch.float32)
    ours, product = resize(x, (30, 25)), resize_by_matrices(x, (30, 25))
    assert ours.shape == product.shape == (*leading, 30, 25)
    if 0 not in leading:   # on the CPU the bits are torch's
        assert torch.equal(ours.view(-1, 30, 25), by_torch(x.reshape(1, -1, 12, 17), (30, 25))[0])
    torch.testing.assert_close(product, ours, rtol=0, atol=1e-6)


def test_the_own_size_changes_nothing():
    x = values(2, 12, 17)
    assert resize(x, [12, 17]) is x


def test_half_precision_is_rounded_once_and_autocast_rounds_nothing():
    x = values(2, 3, 13, 21, dtype=torch.float32)
    exact = resize_by_matrices(x, (50, 61))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resize_by_matrices(x, (50, 61)), exact)
    halved = x.bfloat16()
    assert torch.equal(resize_by_matrices(halved, (50, 61)), resize_by_matrices(halved.float(), (50, 61)).bfloat16())


def test_a_matrix_that_inference_made_first_serves_a_training():
    resize_matrix.cache_clear()
    with torch.inference_mode():
        resize_by_matrices(values(1, 6, 7), (12, 14))
    x = values(1, 6, 7).requires_grad_()
    resize_by_matrices(x, (12, 14)).sum().backward()
    assert x.grad is not None and resize_matrix.cache_info().hits == 2
    assert resize_matrix.cache_info().maxsize is not None   # bounded
