"""Linear algebra on whole matrices: the last two dimensions are held, those before go through."""

from lessen.structure.axes import Axis
from lessen.structure.rules.call import Call, Rule


def solved(call: Call) -> list[Axis]:
    """x in A x = b: rows and columns of A are held, columns of b go through."""
    matrix, right = call.of("A" if "A" in call.values else "self"), call.of("B")
    for axis in (*matrix[-2:], right[-2]):
        call.pin(axis, "solves a system of equations along it")
    return [*call.same(matrix[:-2], right[:-2]), *right[-2:]]


def whole(call: Call) -> list[Axis] | list[list[Axis]]:
    """Inverses, determinants, decompositions."""
    name = next(iter(call.values))
    axes = call.of(name)
    for axis in axes[-2:]:
        call.pin(axis, "needs the whole matrix")
    outs = call.out if isinstance(call.out, list | tuple) else [call.out]
    lead = axes[:-2]
    found = [[*lead[: out.dim()], *(call.fixed(n, "needs the whole matrix") for n in out.shape[len(lead) :])] for out in outs]
    return found if isinstance(call.out, list | tuple) else found[0]


_WHOLE = ("linalg_inv_ex", "inverse", "_linalg_det", "_linalg_slogdet", "linalg_cholesky_ex", "_linalg_svd", "_linalg_eigh", "linalg_qr")

RULES: dict[str, Rule] = {
    "aten.linalg_solve_triangular": solved,
    "aten._linalg_solve_ex": solved,
    **{f"aten.{name}": whole for name in (*_WHOLE, "linalg_matrix_exp", "linalg_pinv", "linalg_lu_factor_ex", "cholesky")},
}
