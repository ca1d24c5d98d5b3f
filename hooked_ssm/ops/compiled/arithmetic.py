"""What kernels compute with: fma, exp, and how they are compiled.

Kernels whose results are outputs are compiled without `fastmath`: a product and a sum are rounded twice, or
once where `fma` says so, in the order written. So two kernels that do the same arithmetic give the same bits.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload


def unchecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, where something checks its arguments: numba compiles no checks."""
    return inspect.unwrap(function)


def kernel(function: Any = None, **options: Any) -> Any:
    """Compiled on its first call for a dtype, without the interpreter's lock, and kept on disk:
    beside the source, or where that folder cannot be written in the user's cache, or, if that cannot be
    written either, for this process alone.

    What is on disk is compiled again when the kernel's own file changes, but not when another file does.
    """
    if function is None:
        return lambda function: kernel(function, **options)
    function = unchecked(function)
    options = {"nogil": True, "error_model": "numpy", **options}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # numba found no folder that it may write into
        return njit(**options)(function)


REASSOCIATED = {"reassoc", "contract", "nsz"}
"""For gradients: sums in any order, as vectors add them. The order does not depend on threads."""


@intrinsic
@unchecked
def _fma(typing_context, a, b, c):  # pyright: ignore[reportUnusedParameter]
    def code(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return a(a, a, a), code


def fma(a: Any, b: Any, c: Any) -> Any:
    """a b + c; rounded once where it is real."""
    raise NotImplementedError("this is for compiled code")


@overload(fma)
@unchecked
def _overload_fma(a, b, c):
    if isinstance(a, types.Complex):
        return lambda a, b, c: a * b + c
    return lambda a, b, c: _fma(a, b, c)


@intrinsic
@unchecked
def _power_of_two(typing_context, biased):  # pyright: ignore[reportUnusedParameter]
    """2^k from 1.5 2^m + k, m the bits of its mantissa: k is in the lowest bits."""
    bits, mantissa, bias = (32, 23, 127) if biased == types.float32 else (64, 52, 1023)

    def code(context, builder, signature, arguments):
        integer = ir.IntType(bits)
        k = builder.bitcast(arguments[0], integer)
        exponent = builder.add(builder.shl(k, integer(mantissa)), integer(bias << mantissa))
        return builder.bitcast(exponent, arguments[0].type)

    return biased(biased), code


# e^x = 2^k e^r, k the integer next to x / ln 2, |r| <= ln 2 / 2. Adding 1.5 2^m rounds to k. ln 2 is taken
# off in two parts. For e^r a polynomial: in single precision that of Cephes' expf, in double that of Taylor.

_f = np.float32
_BIG32, _LOG2E32, _HIGH32, _LOW32 = _f(1.5 * 2**23), _f(1 / math.log(2)), _f(-0.693359375), _f(2.12194440e-4)
_A7, _A6, _A5 = _f(1.9875691500e-4), _f(1.3981999507e-3), _f(8.3334519073e-3)
_A4, _A3, _A2 = _f(4.1665795894e-2), _f(1.6666665459e-1), _f(5.0000001201e-1)
_ONE32, _ZERO32, _INF32, _LEAST32, _MOST32 = _f(1), _f(0), _f(np.inf), _f(-87.33), _f(88.37)


@njit(error_model="numpy")
@unchecked
def exp32(x):
    biased = _fma(x, _LOG2E32, _BIG32)
    k = biased - _BIG32
    r = _fma(k, _LOW32, _fma(k, _HIGH32, x))
    p = _fma(_fma(_fma(_fma(_fma(_A7, r, _A6), r, _A5), r, _A4), r, _A3), r, _A2)
    e = (_fma(p, r * r, r) + _ONE32) * _power_of_two(biased)
    e = _ZERO32 if x < _LEAST32 else e
    return _INF32 if x > _MOST32 else e


_BIG64, _LOG2E64 = 1.5 * 2.0**52, 1 / math.log(2)
_HIGH64, _LOW64 = -6.93145751953125e-1, -1.42860682030941723212e-6
_T = tuple(1 / math.factorial(k) for k in range(14))
_T2, _T3, _T4, _T5, _T6, _T7, _T8, _T9, _T10, _T11, _T12, _T13 = _T[2:]


@njit(error_model="numpy")
@unchecked
def exp64(x):
    biased = _fma(x, _LOG2E64, _BIG64)
    k = biased - _BIG64
    r = _fma(k, _LOW64, _fma(k, _HIGH64, x))
    p = _fma(_fma(_fma(_fma(_T13, r, _T12), r, _T11), r, _T10), r, _T9)
    p = _fma(_fma(_fma(_fma(p, r, _T8), r, _T7), r, _T6), r, _T5)
    p = _fma(_fma(_fma(p, r, _T4), r, _T3), r, _T2)
    e = (_fma(p, r * r, r) + 1.0) * _power_of_two(biased)
    e = 0.0 if x < -708.39 else e
    return np.inf if x > 709.43 else e


def exp(x: Any) -> Any:
    """e^x to 1-2 units in the last place; 0 where that would be subnormal, infinite above 2^127 (2^1023)."""
    raise NotImplementedError("this is for compiled code")


@overload(exp)
@unchecked
def _overload_exp(x):
    return (lambda x: exp32(x)) if x == types.float32 else (lambda x: exp64(x))


# softplus(x) = max(x, 0) + log(1 + e), e = e^-|x| in (0, 1]; log(1 + e) = 2 artanh(s) = 2 (s + s^3 / 3 + ...)
# with s = e / (2 + e), at most 1/3. The polynomial is in s^2, without its first term.

_S3, _S5, _S7, _S9, _S11, _S13, _S15 = (_f(2 / k) for k in range(3, 16, 2))
_TWO32, _TWENTY32 = _f(2), _f(20)


@njit(error_model="numpy")
@unchecked
def softplus32(x):
    e = exp32(-abs(x))
    s = e / (_TWO32 + e)
    q = s * s
    p = _fma(_fma(_fma(_fma(_fma(_fma(_S15, q, _S13), q, _S11), q, _S9), q, _S7), q, _S5), q, _S3)
    log = _fma(p * q, s, _TWO32 * s)
    return x if x > _TWENTY32 else max(x, _ZERO32) + log


_D3, _D5, _D7, _D9, _D11, _D13, _D15, _D17 = (2 / k for k in range(3, 18, 2))
_D19, _D21, _D23, _D25, _D27, _D29, _D31 = (2 / k for k in range(19, 32, 2))


@njit(error_model="numpy")
@unchecked
def softplus64(x):
    e = exp64(-abs(x))
    s = e / (2.0 + e)
    q = s * s
    p = _fma(_fma(_fma(_fma(_fma(_D31, q, _D29), q, _D27), q, _D25), q, _D23), q, _D21)
    p = _fma(_fma(_fma(_fma(_fma(p, q, _D19), q, _D17), q, _D15), q, _D13), q, _D11)
    p = _fma(_fma(_fma(_fma(p, q, _D9), q, _D7), q, _D5), q, _D3)
    log = _fma(p * q, s, 2.0 * s)
    return x if x > 20.0 else max(x, 0.0) + log


def softplus(x: Any) -> Any:
    """log(1 + e^x), to 2 units in the last place; above 20 x itself, as torch has it."""
    raise NotImplementedError("this is for compiled code")


@overload(softplus)
@unchecked
def _overload_softplus(x):
    return (lambda x: softplus32(x)) if x == types.float32 else (lambda x: softplus64(x))


def silu(x: Any) -> Any:
    """x / (1 + e^-x)."""
    raise NotImplementedError("this is for compiled code")


@overload(silu)
@unchecked
def _overload_silu(x):
    if x == types.float32:
        return lambda x: x / (_ONE32 + exp32(-x))
    return lambda x: x / (1.0 + exp64(-x))


def conjugate(x: Any) -> Any:
    """x, or where it is complex its conjugate."""
    raise NotImplementedError("this is for compiled code")


@overload(conjugate)
@unchecked
def _overload_conjugate(x):
    return (lambda x: x.conjugate()) if isinstance(x, types.Complex) else (lambda x: x)
