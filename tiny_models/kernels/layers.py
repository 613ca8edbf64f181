"""What is small in a Llama's layer: norms, SiLU, rotary positions, the largest number.

All arrays are float32. Vectors come from LLVM alone: loops over one axis, no tricks.
"""

import numpy as np

from tiny_models.kernels.compiling import inner, reduction

f4, i4, u4 = np.float32, np.int32, np.uint32


@inner
def exp(x):
    """e to the x. In a loop LLVM does many at once, unlike the C library's."""
    x = min(max(x, f4(-87)), f4(88))
    n = np.floor(x * f4(1.44269504) + f4(0.5))
    r = x - n * f4(0.693359375) + n * f4(2.12194440e-4)
    y = f4(1.9875691500e-4)
    for c in (
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    ):
        y = y * r + f4(c)
    return (y * r * r + r + f4(1)) * u4((i4(n) + 127) << 23).view(np.float32)


@reduction
def sum_of_squares(x):
    s = f4(0)
    for i in range(x.shape[0]):
        s += x[i] * x[i]
    return s


@reduction
def total(x):
    s = f4(0)
    for i in range(x.shape[0]):
        s += x[i]
    return s


@reduction
def largest(x):
    top = f4(-np.inf)
    for i in range(x.shape[0]):
        top = max(top, x[i])
    return top


@inner
def rms_norm(x, w, eps, out):
    for t in range(x.shape[0]):
        row, o = x[t], out[t]
        s = sum_of_squares(row)
        r = f4(1) / np.sqrt(s / f4(w.shape[0]) + f4(eps))
        for i in range(w.shape[0]):
            o[i] = w[i] * (row[i] * r)


@inner
def swiglu(gate_up, out):
    """out (tokens, inner) = SiLU(gate) * up."""
    size = out.shape[1]
    for t in range(gate_up.shape[0]):
        gate, up, o = gate_up[t, :size], gate_up[t, size : 2 * size], out[t]
        for i in range(size):
            o[i] = gate[i] / (f4(1) + exp(-gate[i])) * up[i]


@inner
def add(x, y):
    for t in range(x.shape[0]):
        a, b = x[t], y[t]
        for i in range(a.shape[0]):
            a[i] += b[i]


@inner
def argmax(x):
    """The first place of the largest number."""
    top = largest(x)
    for i in range(x.shape[0]):
        if x[i] == top:
            return i
    return 0


@inner
def rotate(x, cos, sin, out):
    """The rotary embedding of one head: x and out (head_size,)."""
    half = cos.shape[0]
    a, b, o, p = x[:half], x[half : 2 * half], out[:half], out[half : 2 * half]
    for i in range(half):
        o[i] = a[i] * cos[i] - b[i] * sin[i]
        p[i] = b[i] * cos[i] + a[i] * sin[i]
