"""The kernels of `fb_score`'s four launches: product, norm, product, score.

One kernel computes both layers' products. Where rows are few it splits the inner dimension over programs, too, so that
enough of them share the weights' way from memory; whoever reads the products adds the parts up, in a fixed order, and
applies what follows: the bias and the norm after the first layer, all the rest after the second.
"""

from __future__ import annotations

from genreward_fast.kernels.triton_support import HAS_TRITON, INTERPRETED

if HAS_TRITON:
    import triton
    import triton.language as tl

    from genreward_fast.kernels.rssm_tiles import wait

    _UPCAST = tl.constexpr(INTERPRETED)

    @triton.jit
    def _dot(left, right, total, PRECISION: tl.constexpr):
        """total + left @ right, left rounded to the dtype of right, sums in float32."""
        left = left.to(right.dtype)
        if _UPCAST:  # the interpreter takes the bits of a bfloat16 for an integer; in float32 the products are the same
            left, right = left.to(tl.float32), right.to(tl.float32)
        return tl.dot(left, right, total, input_precision=PRECISION)

    @triton.jit
    def _tile(x, row, inside, stride, k, size):
        """Columns k of rows of x, which has `size` of them; (rows, k)."""
        return tl.load(
            x + row.to(tl.int64)[:, None] * stride + k[None, :],
            mask=inside[:, None] & (k < size)[None, :],
            other=0.0,
        )

    @triton.jit
    def _transposed_tile(weight, column, inside, stride, k, size):
        """The same of a weight's rows `column`, transposed; (k, columns)."""
        return tl.load(
            weight + column.to(tl.int64)[None, :] * stride + k[:, None],
            mask=inside[None, :] & (k < size)[:, None],
            other=0.0,
        )

    @triton.jit
    def _product(
        x, x_step, action, weight, parts, rows,
        FEATURES: tl.constexpr, ACTIONS: tl.constexpr, HIDDEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        DEPTH: tl.constexpr, EXTRA: tl.constexpr, STEPS: tl.constexpr, SPLITS: tl.constexpr, STAGES: tl.constexpr,
        PRECISION: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        """Program (row block, column block, head and split): one tile of [x, action] @ weightᵀ over STEPS · DEPTH
        columns of x, to parts (SPLITS, heads, rows, HIDDEN); the last split adds the action's share.

        x (rows, FEATURES), of each head where `x_step` is not 0; weight (heads, HIDDEN, FEATURES + ACTIONS).
        """
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        head = (tl.program_id(2) // SPLITS).to(tl.int64)
        split = tl.program_id(2) % SPLITS
        here, there = row < rows, column < HIDDEN
        stride: tl.constexpr = FEATURES + ACTIONS
        x += head * x_step
        weight += head * HIDDEN * stride
        first = split * STEPS * DEPTH
        k = first + tl.arange(0, DEPTH)
        if STEPS == 1:  # asked for before the wait, which hides the way from memory
            right = _transposed_tile(weight, column, there, stride, k, FEATURES)
        wait(PDL)
        total = tl.zeros([ROWS, COLUMNS], tl.float32)
        if ACTIONS > 0:  # asked for before the loop and used after it
            a = tl.arange(0, EXTRA)
            last = split == SPLITS - 1
            extra = _tile(action, row, here & last, ACTIONS, a, ACTIONS)
            extra_right = _transposed_tile(weight + FEATURES, column, there & last, stride, a, ACTIONS)
        if STEPS == 1:
            total = _dot(_tile(x, row, here, FEATURES, k, FEATURES), right, total, PRECISION)
        else:
            for step in tl.range(0, STEPS, num_stages=STAGES):
                at = k + step * DEPTH
                left = _tile(x, row, here, FEATURES, at, FEATURES)
                total = _dot(left, _transposed_tile(weight, column, there, stride, at, FEATURES), total, PRECISION)
        if ACTIONS > 0:
            total = _dot(extra, extra_right, total, PRECISION)
        heads = tl.num_programs(2) // SPLITS
        position = ((split * heads + head) * rows + row[:, None]) * HIDDEN + column[None, :]
        tl.store(parts + position, total, mask=here[:, None] & there[None, :])

    @triton.jit
    def _norm(
        parts, bias, norm_weight, norm_bias, out, rows, eps,
        HIDDEN: tl.constexpr, PADDED: tl.constexpr, SPLITS: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        """Program (row, head): tanh(norm(bias + the sum of parts)), to out (heads, rows, HIDDEN)."""
        head = tl.program_id(1).to(tl.int64)
        column = tl.arange(0, PADDED)
        inside = column < HIDDEN
        of_head = head * HIDDEN + column
        total = tl.load(bias + of_head, mask=inside, other=0.0).to(tl.float32)
        gain = tl.load(norm_weight + of_head, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(norm_bias + of_head, mask=inside, other=0.0).to(tl.float32)
        wait(PDL)
        row = tl.program_id(0)
        for split in tl.static_range(SPLITS):
            position = ((split * tl.num_programs(1) + head) * rows + row) * HIDDEN + column
            total += tl.load(parts + position, mask=inside, other=0.0)
        centred = tl.where(inside, total - tl.sum(total, 0) / HIDDEN, 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, 0) / HIDDEN + eps)
        y = centred * scale * gain + shift
        tl.store(out + (head * rows + row) * HIDDEN + column, 2.0 * tl.sigmoid(2.0 * y) - 1.0, mask=inside)  # tanh

    @triton.jit
    def _score(
        parts, bias, direction, offset, score, rows,
        HEADS: tl.constexpr, HEADS_PADDED: tl.constexpr, HIDDEN: tl.constexpr, PADDED: tl.constexpr,
        SPLITS: tl.constexpr, MEAN: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        """Program (row): each head's relu(bias + the sum of parts)·direction + offset, then their mean or minimum."""
        head, column = tl.arange(0, HEADS_PADDED), tl.arange(0, PADDED)
        real = head < HEADS
        inside = real[:, None] & (column < HIDDEN)[None, :]
        of_head = head[:, None] * HIDDEN + column[None, :]
        total = tl.load(bias + of_head, mask=inside, other=0.0).to(tl.float32)
        towards = tl.load(direction + of_head, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(offset + head, mask=real, other=0.0)
        wait(PDL)
        row = tl.program_id(0)
        for split in tl.static_range(SPLITS):
            position = ((split * HEADS + head[:, None].to(tl.int64)) * rows + row) * HIDDEN + column[None, :]
            total += tl.load(parts + position, mask=inside, other=0.0)
        # Not tl.maximum: a NaN must stay one.
        value += tl.sum(tl.where(total < 0, 0.0, total) * towards, 1)
        if MEAN:
            result = tl.sum(tl.where(real, value, 0.0), 0) / HEADS
        else:
            # A NaN of any head must show, as it does in torch.amin.
            undefined = tl.sum((real & (value != value)).to(tl.int32), 0) > 0
            lowest = tl.min(tl.where(real, value, float("inf")), 0)
            result = tl.where(undefined, float("nan"), lowest)
        tl.store(score + row, result)
