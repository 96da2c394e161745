"""The kernels of `image_level`'s launches, and how a window of the image lies in the rows of a product.

A maximum of 2 x 2 pixels reads a window of 6 x 6 pixels: 3 x 3 blocks of 2 x 2, 108 values. Row k of the weights is
value k of the window in the order (block, row in the block, column in the block, colour); their columns are (phase,
channel), with zeros where a phase does not read.
"""

from __future__ import annotations

from genreward_fast.kernels.triton_support import HAS_TRITON

if HAS_TRITON:
    import triton
    import triton.language as tl

    from genreward_fast.kernels.normed_rows import normed_rows, normed_rows_backward

    @triton.jit
    def _weights(weight, out, size, BLOCK: tl.constexpr, SIZE: tl.constexpr):
        """Weights (C, 3, 5, 5) to (128, 4 SIZE), BLOCK elements of it."""
        index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        k, phase, o = index // (4 * SIZE), index // SIZE % 4, index % SIZE
        block, pixel, i = k // 12, k // 3 % 4, k % 3
        row, column = block // 3 * 2 + pixel // 2 - phase // 2, block % 3 * 2 + pixel % 2 - phase % 2
        tap = (k < 108) & (o < size) & (row >= 0) & (row < 5) & (column >= 0) & (column < 5)
        value = tl.load(weight + ((o * 3 + i) * 5 + row) * 5 + column, mask=tap, other=0.0)
        tl.store(out + index, value.to(out.dtype.element_ty))

    @triton.jit
    def _sum_weights(partial, by_weight, programs, size, PARTS: tl.constexpr, SIZE: tl.constexpr):
        """Program (row, column, colour): that element of all channels' gradients, from partial (programs, 108, 4 SIZE),
        in a fixed order."""
        i, column, row = tl.program_id(0) % 3, tl.program_id(0) // 3 % 5, tl.program_id(0) // 15
        o = tl.arange(0, SIZE)
        total = tl.zeros([PARTS, SIZE], tl.float32)
        for phase in tl.static_range(4):
            y, x = row + phase // 2, column + phase % 2
            k = (y // 2 * 3 + x // 2) * 12 + (y % 2 * 2 + x % 2) * 3 + i
            for start in range(0, programs, PARTS):
                part = start + tl.arange(0, PARTS)
                at = (part.to(tl.int64)[:, None] * 108 + k) * (4 * SIZE) + phase * SIZE + o[None, :]
                total += tl.load(partial + at, mask=(part < programs)[:, None], other=0.0)
        tl.store(by_weight + ((o * 3 + i) * 5 + row) * 5 + column, tl.sum(total, 0), mask=o < size)

    @triton.jit
    def _apart(x, ROWS: tl.constexpr, SIZE: tl.constexpr):
        """(ROWS, 4 SIZE) as its four phases, (ROWS, SIZE) each."""
        pairs = tl.reshape(tl.permute(tl.reshape(x, [ROWS, 4, SIZE]), [0, 2, 1]), [ROWS, SIZE, 2, 2])
        left, right = tl.split(pairs)
        first, third = tl.split(left)
        second, fourth = tl.split(right)
        return first, second, third, fourth

    @triton.jit
    def _together(first, second, third, fourth, ROWS: tl.constexpr, SIZE: tl.constexpr):
        """The inverse of `_apart`."""
        pairs = tl.join(tl.join(first, third), tl.join(second, fourth))
        return tl.reshape(tl.permute(tl.reshape(pairs, [ROWS, SIZE, 4]), [0, 2, 1]), [ROWS, 4 * SIZE])

    @triton.jit
    def _larger(a, b):
        return tl.maximum(a.to(tl.float32), b.to(tl.float32), propagate_nan=tl.PropagateNan.ALL)

    @triton.jit
    def _place(tile, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
        """ROWS rows of the result, which are ordered as its blocks of 2 x 2 are, all in one line of blocks: where their
        first window begins in the map of blocks, the number of the first row, and how many rows there are."""
        pieces: tl.constexpr = (2 * WIDTH + ROWS - 1) // ROWS
        line, piece = (tile // pieces).to(tl.int64), tile % pieces
        # Each image has a border above and below.
        first = (2 * line + line // (HEIGHT // 2) * 2) * (WIDTH + 2) + piece * (ROWS // 2)
        return first * 12, line * (2 * WIDTH) + piece * ROWS, 2 * WIDTH - piece * ROWS

    @triton.jit
    def _windows(blocks, rows, WIDTH: tl.constexpr, ROWS: tl.constexpr):
        """The windows of `rows` rows of the result, (ROWS, 128), of which `blocks` points to the first."""
        k, row = tl.arange(0, 128), tl.arange(0, ROWS)
        group = k // 4  # values that lie side by side wherever the window lies
        offset = group // 9 * ((WIDTH + 2) * 12) + group % 9 * 4 + k % 4
        start = (row % 4 // 2 * (WIDTH + 2) + row // 4 * 2 + row % 2) * 12
        inside = (row < rows)[:, None] & (k < 108)[None, :]
        return tl.load(blocks + start[:, None] + offset[None, :], mask=inside, other=0.0)

    @triton.jit
    def _biased(x, shift):
        """A rounded convolution plus bias, rounded."""
        return (x.to(tl.float32) + shift.to(x.dtype).to(tl.float32)[None, :]).to(x.dtype)

    @triton.jit
    def _phases(windows, weights, shift, ROWS: tl.constexpr, SIZE: tl.constexpr):
        """Convolution plus bias of each phase, rounded one by one, and their maximum: (ROWS, SIZE) each."""
        x = tl.dot(windows, weights, input_precision="ieee").to(weights.dtype)
        first, second, third, fourth = _apart(x, ROWS, SIZE)
        first, second, third, fourth = (
            _biased(first, shift), _biased(second, shift), _biased(third, shift), _biased(fourth, shift)
        )  # fmt: skip
        highest = _larger(_larger(first, second), _larger(third, fourth)).to(weights.dtype)
        return first, second, third, fourth, highest

    @triton.jit
    def _forward(
        blocks, weights, bias, scale, out, tiles, size, eps, per_program,
        HEIGHT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, STAGES: tl.constexpr,
    ):  # fmt: skip
        """Program p: the p-th `per_program` tiles of ROWS rows of the result."""
        o, wide = tl.arange(0, SIZE), tl.arange(0, 4 * SIZE)
        held = tl.load(weights + tl.arange(0, 128)[:, None] * (4 * SIZE) + wide[None, :])
        shift = tl.load(bias + o, mask=o < size, other=0.0)
        factor = tl.load(scale + o, mask=o < size, other=0.0)
        at = tl.arange(0, ROWS)[:, None] * size + o[None, :]
        begin = tl.program_id(0) * per_program
        for step in tl.range(tl.minimum(per_program, tiles - begin), num_stages=STAGES):
            first, row, rows = _place(begin + step, HEIGHT, WIDTH, ROWS)
            windows = _windows(blocks + first, rows, WIDTH, ROWS)
            _, _, _, _, highest = _phases(windows, held, shift, ROWS, SIZE)
            y = normed_rows(highest.to(tl.float32), factor, size, eps).to(out.dtype.element_ty)
            inside = (tl.arange(0, ROWS) < rows)[:, None] & (o < size)[None, :]
            tl.store(out + row * size + at, y, mask=inside)

    @triton.jit
    def _added(total, x, ROWS: tl.constexpr, SIZE: tl.constexpr):
        """total (ROWS / 16, 8, SIZE) plus (ROWS, SIZE): of each 16 rows, a thread holds two of those that it adds."""
        return total + tl.sum(tl.reshape(x, [ROWS // 16, 2, 8, SIZE]), 1)

    @triton.jit
    def _backward(
        grad, blocks, weights, bias, scale, by_weights, by_others, tiles, size, eps, per_program,
        HEIGHT: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr, STAGES: tl.constexpr,
    ):  # fmt: skip
        """Program p: the p-th `per_program` tiles; its shares of the gradients by weights go to by_weights[p], of those
        by bias and scale to by_others[p]."""
        o, wide, k = tl.arange(0, SIZE), tl.arange(0, 4 * SIZE), tl.arange(0, 128)
        held = tl.load(weights + k[:, None] * (4 * SIZE) + wide[None, :])
        shift = tl.load(bias + o, mask=o < size, other=0.0)
        factor = tl.load(scale + o, mask=o < size, other=0.0)
        at = tl.arange(0, ROWS)[:, None] * size + o[None, :]
        of_weights = tl.zeros([128, 4 * SIZE], tl.float32)
        of_bias = tl.zeros([ROWS // 16, 8, SIZE], tl.float32)
        of_scale = tl.zeros([ROWS // 16, 8, SIZE], tl.float32)
        begin = tl.program_id(0) * per_program
        for step in tl.range(tl.minimum(per_program, tiles - begin), num_stages=STAGES):
            first_window, row, rows = _place(begin + step, HEIGHT, WIDTH, ROWS)
            inside = (tl.arange(0, ROWS) < rows)[:, None] & (o < size)[None, :]
            by_y = tl.load(grad + row * size + at, mask=inside, other=0.0).to(tl.float32)
            windows = _windows(blocks + first_window, rows, WIDTH, ROWS)
            first, second, third, fourth, highest = _phases(windows, held, shift, ROWS, SIZE)
            by_value, by_factor = normed_rows_backward(by_y, highest.to(tl.float32), factor, size, eps)
            of_scale = _added(of_scale, by_factor, ROWS, SIZE)
            of_bias = _added(of_bias, by_value, ROWS, SIZE)
            # Products, not choices: where the maximum is NaN no phase equals it, and the gradient must be NaN.
            one, two = (first == highest).to(tl.float32), (second == highest).to(tl.float32)
            three, four = (third == highest).to(tl.float32), (fourth == highest).to(tl.float32)
            share = by_value / (one + two + three + four)
            kind: tl.constexpr = held.dtype
            by_x = _together(
                (share * one).to(kind), (share * two).to(kind),
                (share * three).to(kind), (share * four).to(kind),
                ROWS, SIZE,
            )  # fmt: skip
            of_weights = tl.dot(tl.trans(windows), by_x, of_weights, input_precision="ieee")
        to = by_weights + (tl.program_id(0).to(tl.int64) * 108 + k)[:, None] * (4 * SIZE) + wide[None, :]
        tl.store(to, of_weights, mask=(k < 108)[:, None])
        to = by_others + tl.program_id(0) * 2 * size + o
        tl.store(to, tl.sum(tl.sum(of_bias, 0), 0), mask=o < size)
        tl.store(to + size, tl.sum(tl.sum(of_scale, 0), 0), mask=o < size)
