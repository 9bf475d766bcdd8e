"""Pooling, resampling and Fourier transforms: the last dimensions are mixed, those before go through."""

from lessen.structure.axes import Axis
from lessen.structure.rules.call import Call, Rule


def pooled(call: Call, count: int) -> list[Axis] | list[list[Axis]]:
    """The last `count` dimensions are held and made anew."""
    first = call.out[0] if isinstance(call.out, list | tuple) else call.out
    axes = call.of("self" if "self" in call.values else "input")
    for axis in axes[len(axes) - count :]:
        call.pin(axis, "mixes values along it")
    out = [*axes[: len(axes) - count], *(call.fixed(n, "makes positions") for n in first.shape[first.dim() - count :])]
    return [out for _ in call.out] if isinstance(call.out, list | tuple) else out


def _pool(count: int) -> Rule:
    return lambda call: pooled(call, count)


def grid_sample(call: Call) -> list[Axis]:
    """Pixels at the places that a grid names; channels go through."""
    axes, grid = call.of("input"), call.of("grid")
    call.unify(axes[0], grid[0])
    for axis in axes[2:]:
        call.pin(axis, "samples along it")
    call.pin(grid[-1], "is a place in an image")
    return [axes[0], axes[1], *grid[1:-1]]


def affine_grid(call: Call) -> list[Axis]:
    """Places in an image."""
    return [call.of("theta")[0], *(call.fixed(n, "is a place in an image") for n in call.out.shape[1:])]


def fft(call: Call) -> list[Axis]:
    """The transformed dimensions are mixed."""
    axes = call.of("self")
    for dim in call.dims("dim"):
        call.pin(axes[dim], "transforms along it")
        if call.out.shape[dim] != axes[dim].size:
            axes[dim] = call.fixed(call.out.shape[dim], "is a frequency")
    return axes


_POOLS = ("max_pool{}d_with_indices", "avg_pool{}d", "adaptive_avg_pool{}d", "_adaptive_avg_pool{}d", "adaptive_max_pool{}d", "max_pool{}d")
_RESAMPLERS = {1: ("linear", "nearest"), 2: ("bilinear", "nearest", "bicubic", "_bilinear_aa", "_bicubic_aa"), 3: ("trilinear", "nearest")}

RULES: dict[str, Rule] = {
    **{f"aten.{name.format(n)}": _pool(n) for name in _POOLS for n in (1, 2, 3)},
    **{
        f"aten.{'_' if name[0] == '_' else ''}upsample_{name.lstrip('_').split('_')[0]}{n}d{'_aa' if name.endswith('_aa') else ''}": _pool(
            n
        )
        for n, names in _RESAMPLERS.items()
        for name in names
    },
    **{f"aten._upsample_nearest_exact{n}d": _pool(n) for n in (1, 2, 3)},
    **dict.fromkeys(("aten._fft_r2c", "aten._fft_c2r", "aten._fft_c2c"), fft),
    "aten.grid_sampler_2d": grid_sample,
    "aten.grid_sampler_3d": grid_sample,
    "aten.affine_grid_generator": affine_grid,
}
