"""Vectors of N float32 numbers as a numba type, written in LLVM's language.

LLVM turns them into the registers of the processor at hand: AVX-512, AVX2 or NEON. A
`lanes` value is one vector; a tuple of them holds one for each of several tokens. Where
AVAILABLE is false the processor is too old for them, and the kernels use plain loops.
"""

import platform

from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model


def _width() -> tuple[int, bool]:
    """Numbers in a vector, and whether the processor has what these vectors need."""
    if config.CPU_FEATURES is not None:  # numba was told what to compile for
        has = {x[1:] for x in config.CPU_FEATURES.split(",") if x.startswith("+")}
    elif platform.machine().lower() in ("arm64", "aarch64"):
        return 8, True
    else:
        has = {name for name, yes in binding.get_host_cpu_features().items() if yes}
    # f16c: without it LLVM calls a function that nobody has, and the process ends.
    if not {"avx2", "fma", "f16c"} <= has:
        return 8, False
    # Half of 32 registers hold sums, or of 16.
    return (16 if "avx512f" in has else 8), True


N, AVAILABLE = _width()
FLOATS, HALVES, INTEGERS, BYTES = (
    ir.VectorType(kind, N)
    for kind in (ir.FloatType(), ir.HalfType(), ir.IntType(32), ir.IntType(8))
)


class Vector(types.Type):
    def __init__(self, name, llvm):
        self.llvm = llvm
        super().__init__(name)


lanes, integers = Vector("lanes", FLOATS), Vector("integers", INTEGERS)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, kind.llvm)


# --- memory: array.flat[index : index + N] --------------------------------------------


def _pointer(context, builder, kind, array, index, llvm):
    start = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(start, [index]), llvm.as_pointer())


def _loader(llvm, align, convert, result):
    @intrinsic
    def load(typing, array, index):
        def build(context, builder, signature, args):
            at = _pointer(context, builder, array, *args, llvm)
            return convert(builder, builder.load(at, align=align))

        return result(array, types.intp), build

    return load


load = _loader(FLOATS, 4, lambda b, x: x, lanes)
# A float16 is kept as the uint16 with its bits.
load_half = _loader(HALVES, 2, lambda b, x: b.fpext(x, FLOATS), lanes)
load_int8 = _loader(BYTES, 1, lambda b, x: b.sitofp(x, FLOATS), lanes)
load_bytes = _loader(BYTES, 1, lambda b, x: b.zext(x, INTEGERS), integers)


@intrinsic
def store(typing, array, index, stride, values):
    """array.flat[index + t * stride : ... + N] = values[t], for every t."""

    def build(context, builder, signature, args):
        array_, at, step, values_ = args
        for value in cgutils.unpack_tuple(builder, values_):
            place = _pointer(context, builder, array, array_, at, FLOATS)
            builder.store(value, place, align=4)
            at = builder.add(at, step)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, values), build


@intrinsic
def prefetch(typing, array, index):
    """array.flat[index] will be needed soon. Past the end of the array is no fault."""

    def build(context, builder, signature, args):
        byte = ir.IntType(8)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte.as_pointer()] + [number] * 3)
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        to_read_keep_data = [ir.Constant(number, n) for n in (0, 3, 1)]
        at = _pointer(context, builder, array, *args, byte)
        builder.call(call, [at, *to_read_keep_data])
        return context.get_dummy_value()

    return types.void(array, types.intp), build


# --- arithmetic -----------------------------------------------------------------------


def _multiply_add(builder, x, y, z):
    kind = ir.FunctionType(FLOATS, [FLOATS] * 3)
    name = f"llvm.fma.v{N}f32"
    return builder.call(
        cgutils.get_or_insert_function(builder.module, kind, name), [x, y, z]
    )


def _repeat(builder, scalar):
    none = ir.Constant(FLOATS, ir.Undefined)
    zero = ir.Constant(ir.IntType(32), 0)
    one = builder.insert_element(none, scalar, zero)
    return builder.shuffle_vector(one, none, ir.Constant(INTEGERS, [0] * N))


@intrinsic
def fma(typing, a, b, c):
    """a * b + c, rounded once."""

    def build(context, builder, signature, args):
        return _multiply_add(builder, *args)

    return lanes(lanes, lanes, lanes), build


@intrinsic
def mul(typing, a, b):
    def build(context, builder, signature, args):
        return builder.fmul(*args)

    return lanes(lanes, lanes), build


@intrinsic
def low(typing, a):
    """The lower four bits of each byte, as floats."""

    def build(context, builder, signature, args):
        bits = builder.and_(args[0], ir.Constant(INTEGERS, [15] * N))
        return builder.sitofp(bits, FLOATS)

    return lanes(integers), build


@intrinsic
def high(typing, a):
    """The upper four bits of each byte, as floats."""

    def build(context, builder, signature, args):
        bits = builder.lshr(args[0], ir.Constant(INTEGERS, [4] * N))
        return builder.sitofp(bits, FLOATS)

    return lanes(integers), build


@intrinsic
def zeros(typing, like):
    """A zero vector for each element of the tuple `like`."""

    def build(context, builder, signature, args):
        return cgutils.pack_array(builder, [ir.Constant(FLOATS, [0.0] * N)] * count)

    count = like.count
    return types.UniTuple(lanes, count)(like), build


@intrinsic
def plus(typing, a, b):
    """a[t] + b[t], for every t."""

    def build(context, builder, signature, args):
        pairs = zip(*(cgutils.unpack_tuple(builder, x) for x in args), strict=True)
        return cgutils.pack_array(builder, [builder.fadd(x, y) for x, y in pairs])

    return a(a, a), build


@intrinsic
def add_products(typing, sums, w, x, column):
    """sums[t] + w * x[t, column], for every t. x is two-dimensional."""

    def build(context, builder, signature, args):
        sums_, w_, x_, at = args
        x_ = context.make_array(x)(context, builder, x_)
        columns = cgutils.unpack_tuple(builder, x_.shape)[1]
        out = []
        for old in cgutils.unpack_tuple(builder, sums_):
            scalar = _repeat(builder, builder.load(builder.gep(x_.data, [at])))
            out.append(_multiply_add(builder, w_, scalar, old))
            at = builder.add(at, columns)
        return cgutils.pack_array(builder, out)

    return sums(sums, lanes, x, types.intp), build
