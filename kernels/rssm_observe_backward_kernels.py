"""The kernels of `rssm_observe_backward`'s launches, one for each, and that of the norms before them."""

from __future__ import annotations

from genreward_fast.kernels.triton_support import HAS_TRITON

if HAS_TRITON:
    import triton
    import triton.language as tl

    from genreward_fast.kernels.rssm_tiles import load_rows, places, product, wait

    @triton.jit
    def _units(x, unit, rate, eps, C: tl.constexpr, SIZE: tl.constexpr):
        """Program (row, group): the norm without scale, and its factor."""
        at = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
        column = tl.arange(0, SIZE)
        value = tl.load(x + at * C + column, mask=column < C, other=0.0).to(tl.float32)
        factor = 1.0 / tl.sqrt(tl.sum(value * value, 0) / C + eps)
        tl.store(unit + at * C + column, (value * factor).to(unit.dtype.element_ty), mask=column < C)
        tl.store(rate + at, factor)

    @triton.jit
    def load_tile(x, stride, row, column, inside):
        """(ROWS, columns) float32."""
        place = x + row.to(tl.int64)[:, None] * stride + column[None, :]
        return tl.load(place, mask=inside[:, None], other=0.0).to(tl.float32)

    @triton.jit
    def store_tile(x, stride, row, column, inside, value):
        place = x + row.to(tl.int64)[:, None] * stride + column[None, :]
        tl.store(place, value.to(x.dtype.element_ty), mask=inside[:, None])

    @triton.jit
    def sum_parts(along, stride, row, inside, TILES: tl.constexpr, TILES_PADDED: tl.constexpr):
        """(ROWS,) sums of what all programs have summed."""
        part = tl.arange(0, TILES_PADDED)[None, :]
        place = along + row.to(tl.int64)[:, None] * stride + part
        return tl.sum(tl.load(place, mask=inside[:, None] & (part < TILES), other=0.0), 1)

    @triton.jit
    def silu_slope(unit, factor):
        """The derivative of silu(unit · factor) by unit."""
        y = unit * factor
        gate = tl.sigmoid(y)
        return gate * (1.0 + y * (1.0 - gate)) * factor

    @triton.jit
    def _seen(
        x, x_stride, w, w_stride, out, out_stride, unit, unit_stride, by_unit, by_unit_stride, along, along_stride,
        scale, rows,
        K: tl.constexpr, CHUNK: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        EXACT: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        """Program (tile, rows): some columns; w (K, H)."""
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        from_row = w + column[None, None, :]
        weight = tl.load(from_row + places(0, CHUNK, GROUPS).to(tl.int64)[:, :, None] * w_stride)
        value = load_tile(unit, unit_stride, row, column, inside)
        slope = silu_slope(value, tl.load(scale + column)[None, :])
        wait(PDL)
        acc = tl.zeros([GROUPS, ROWS, COLUMNS], tl.float32)
        for start in tl.static_range(0, K, CHUNK):
            at = places(start, CHUNK, GROUPS)
            if start > 0:
                weight = tl.load(from_row + at.to(tl.int64)[:, :, None] * w_stride)
            acc = product(load_rows(x, x_stride, row, inside, at), weight, acc, EXACT)
        result = tl.sum(acc, 0)
        store_tile(out, out_stride, row, column, inside, result)
        result *= slope
        store_tile(by_unit, by_unit_stride, row, column, inside, result)
        place = along + row.to(tl.int64) * along_stride + tl.program_id(0)
        tl.store(place, tl.sum(result * value, 1), mask=inside)

    @triton.jit(do_not_specialize_on_alignment=["reset", "reset_next", "rate", "next_rate"])
    def _deter(
        seen, seen_stride, rate, rate_stride, along, along_stride, unit_product, unit_product_stride, w, w_stride,
        next_seen, next_seen_stride, next_rate, next_rate_stride, next_along, next_along_stride, next_product,
        next_product_stride, next_w, next_w_stride, direct, direct_stride, later, later_stride, gates, gates_stride,
        old, old_stride, by_gates, by_gates_stride, by_old, by_old_stride, reset, reset_stride, reset_next,
        reset_next_stride, bias, rows,
        H: tl.constexpr, PIECE: tl.constexpr, TILES: tl.constexpr, TILES_PADDED: tl.constexpr, LAST: tl.constexpr,
        CHUNK: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr,
        PDL: tl.constexpr,
    ):  # fmt: skip
        """Program (tile, rows, block): some columns of a block; both w (H, D)."""
        local = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        column = tl.program_id(2) * PIECE + local
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        at = places(0, CHUNK, GROUPS)
        from_row = w + column[None, None, :]
        weight = tl.load(from_row + at.to(tl.int64)[:, :, None] * w_stride)
        of_gate = tl.program_id(2) * 3 * PIECE + local
        # What the forward pass has kept may be read before the kernel before this one ends.
        first = load_tile(gates, gates_stride, row, of_gate, inside) + tl.load(bias + of_gate).to(tl.float32)[None, :]
        of_gate += PIECE
        raw = load_tile(gates, gates_stride, row, of_gate, inside) + tl.load(bias + of_gate).to(tl.float32)[None, :]
        of_gate += PIECE
        update = load_tile(gates, gates_stride, row, of_gate, inside) + tl.load(bias + of_gate).to(tl.float32)[None, :]
        first = tl.sigmoid(first)
        u = tl.sigmoid(update - 1.0)
        new = 2.0 * tl.sigmoid(2.0 * first * raw) - 1.0
        fresh = tl.load(reset + row * reset_stride, mask=inside, other=1)
        prior = tl.where(fresh[:, None], 0.0, load_tile(old, old_stride, row, column, inside))
        total = load_tile(direct, direct_stride, row, column, inside)
        unit = load_tile(unit_product, unit_product_stride, row, column, inside)
        factor = tl.load(rate + row * rate_stride, mask=inside, other=0.0)
        if not LAST:
            next_row = next_w + column[None, None, :]
            next_weight = tl.load(next_row + at.to(tl.int64)[:, :, None] * next_w_stride)
            cut = tl.load(reset_next + row * reset_next_stride, mask=inside, other=1)
            next_unit = load_tile(next_product, next_product_stride, row, column, inside)
            next_factor = tl.load(next_rate + row * next_rate_stride, mask=inside, other=0.0)
        wait(PDL)
        value = load_rows(seen, seen_stride, row, inside, at)
        mean = sum_parts(along, along_stride, row, inside, TILES, TILES_PADDED) / H
        if not LAST:
            total += load_tile(later, later_stride, row, column, inside)
            next_mean = sum_parts(next_along, next_along_stride, row, inside, TILES, TILES_PADDED) / H
            acc = tl.zeros([GROUPS, ROWS, COLUMNS], tl.float32)
            for start in tl.static_range(0, H, CHUNK):
                if start > 0:
                    next_weight = tl.load(next_row + (start + at).to(tl.int64)[:, :, None] * next_w_stride)
                acc = product(load_rows(next_seen, next_seen_stride, row, inside, start + at), next_weight, acc, EXACT)
            more = next_factor[:, None] * (tl.sum(acc, 0) - next_mean[:, None] * next_unit)
            total += tl.where(cut[:, None], 0.0, more)
        acc = tl.zeros([GROUPS, ROWS, COLUMNS], tl.float32)
        for start in tl.static_range(0, H, CHUNK):
            if start > 0:
                weight = tl.load(from_row + (start + at).to(tl.int64)[:, :, None] * w_stride)
                value = load_rows(seen, seen_stride, row, inside, start + at)
            acc = product(value, weight, acc, EXACT)
        total += factor[:, None] * (tl.sum(acc, 0) - mean[:, None] * unit)
        by_inner = total * u * (1.0 - new * new)
        store_tile(by_gates, by_gates_stride, row, of_gate, inside, total * (new - prior) * u * (1.0 - u))
        store_tile(by_gates, by_gates_stride, row, of_gate - PIECE, inside, by_inner * first)
        by_first = by_inner * raw * first * (1.0 - first)
        store_tile(by_gates, by_gates_stride, row, of_gate - 2 * PIECE, inside, by_first)
        store_tile(by_old, by_old_stride, row, column, inside, total * (1.0 - u))

    @triton.jit
    def _gates(
        grad, grad_stride, out, out_stride, unit, unit_stride, by_unit, by_unit_stride, along, along_stride, scale, w,
        rows,
        PIECE: tl.constexpr, CHUNK: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        EXACT: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        """Program (tile, rows, block): some columns of a block; w (blocks, PIECE, 3 PIECE)."""
        block = tl.program_id(2)
        local = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        column = block * PIECE + local
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        at = places(0, CHUNK, GROUPS)
        from_block = w + (block.to(tl.int64) * PIECE + local[None, None, :]) * 3 * PIECE
        weight = tl.load(from_block + at[:, :, None])
        value = load_tile(unit, unit_stride, row, column, inside)
        slope = silu_slope(value, tl.load(scale + column)[None, :])
        wait(PDL)
        acc = tl.zeros([GROUPS, ROWS, COLUMNS], tl.float32)
        for start in tl.static_range(0, 3 * PIECE, CHUNK):
            if start > 0:
                weight = tl.load(from_block + (start + at)[:, :, None])
            given = load_rows(grad, grad_stride, row, inside, block * 3 * PIECE + start + at)
            acc = product(given, weight, acc, EXACT)
        result = tl.sum(acc, 0)
        store_tile(out, out_stride, row, column, inside, result)
        result *= slope
        store_tile(by_unit, by_unit_stride, row, column, inside, result)
        place = along + row.to(tl.int64) * along_stride + block * (PIECE // COLUMNS) + tl.program_id(0)
        tl.store(place, tl.sum(result * value, 1), mask=inside)

    @triton.jit(do_not_specialize_on_alignment=["reset", "rate"])
    def _hidden(
        grad, grad_stride, rate, rate_stride, along, along_stride, own_product, own_product_stride, shared_product,
        shared_product_stride, by_old, by_old_stride, by_shared, by_shared_stride, unit, unit_stride, by_unit,
        by_unit_stride, by_along, by_along_stride, w, w_stride, reset, reset_stride, scale, rows,
        D: tl.constexpr, PIECE: tl.constexpr, TILES: tl.constexpr, TILES_PADDED: tl.constexpr, CHUNK: tl.constexpr,
        GROUPS: tl.constexpr, OWN: tl.constexpr, OWN_GROUPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        EXACT: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        """The first programs compute columns of embedded states, whose inner dimension is all of D; the others add to
        columns of the state before, whose is one block. w (blocks, PIECE + 3 H, PIECE)."""
        tile = tl.program_id(0) - (tl.num_programs(0) - TILES)
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        factor = tl.load(rate + row * rate_stride, mask=inside, other=0.0)
        if tile < 0:
            shared_tile = tl.program_id(0)
            column = shared_tile * COLUMNS + tl.arange(0, COLUMNS)
            part: tl.constexpr = CHUNK // GROUPS
            group = tl.arange(0, GROUPS)[:, None] * part
            within = tl.arange(0, part)[None, :]
            from_row = w + (PIECE + column[None, None, :]) * PIECE
            place = group // PIECE * w_stride + group % PIECE + within
            weight = tl.load(from_row + place[:, :, None])
            value = load_tile(unit, unit_stride, row, column, inside)
            slope = silu_slope(value, tl.load(scale + column)[None, :])
            other = load_tile(shared_product, shared_product_stride, row, column, inside)
            wait(PDL)
            mean = sum_parts(along, along_stride, row, inside, TILES, TILES_PADDED) / D
            acc = tl.zeros([GROUPS, ROWS, COLUMNS], tl.float32)
            for start in tl.static_range(0, D, CHUNK):
                if start > 0:
                    place = (start + group) // PIECE * w_stride + (start + group) % PIECE + within
                    weight = tl.load(from_row + place[:, :, None])
                acc = product(load_rows(grad, grad_stride, row, inside, start + group + within), weight, acc, EXACT)
            result = factor[:, None] * (tl.sum(acc, 0) - mean[:, None] * other)
            store_tile(by_shared, by_shared_stride, row, column, inside, result)
            result *= slope
            store_tile(by_unit, by_unit_stride, row, column, inside, result)
            to = by_along + row.to(tl.int64) * by_along_stride + shared_tile
            tl.store(to, tl.sum(result * value, 1), mask=inside)
        else:
            own_column = tile * COLUMNS + tl.arange(0, COLUMNS)
            block = tile // (PIECE // COLUMNS)
            at = places(0, OWN, OWN_GROUPS)
            own_row = w + block.to(tl.int64) * w_stride
            own_row += (tile % (PIECE // COLUMNS) * COLUMNS + tl.arange(0, COLUMNS))[None, None, :] * PIECE
            own_weight = tl.load(own_row + at[:, :, None])
            fresh = tl.load(reset + row * reset_stride, mask=inside, other=1)
            own_other = load_tile(own_product, own_product_stride, row, own_column, inside)
            wait(PDL)
            own_mean = sum_parts(along, along_stride, row, inside, TILES, TILES_PADDED) / D
            given = load_tile(by_old, by_old_stride, row, own_column, inside)
            own_acc = tl.zeros([OWN_GROUPS, ROWS, COLUMNS], tl.float32)
            for start in tl.static_range(0, PIECE, OWN):
                if start > 0:
                    own_weight = tl.load(own_row + (start + at)[:, :, None])
                own_value = load_rows(grad, grad_stride, row, inside, block * PIECE + start + at)
                own_acc = product(own_value, own_weight, own_acc, EXACT)
            own = factor[:, None] * (tl.sum(own_acc, 0) - own_mean[:, None] * own_other)
            store_tile(by_old, by_old_stride, row, own_column, inside, tl.where(fresh[:, None], 0.0, given + own))

    @triton.jit(do_not_specialize_on_alignment=["reset", "rate"])
    def _embedded(
        grad, grad_stride, rate, rate_stride, along, along_stride, unit_product, unit_product_stride, w, w_stride,
        by_stoch, by_stoch_stride, by_logits, by_logits_stride, logits, logits_stride, out, out_stride, reset,
        reset_stride, rows, unimix,
        H: tl.constexpr, TILES: tl.constexpr, TILES_PADDED: tl.constexpr, LATENTS: tl.constexpr,
        CLASSES: tl.constexpr, PADDED: tl.constexpr, PER: tl.constexpr, CHUNK: tl.constexpr, GROUPS: tl.constexpr,
        ROWS: tl.constexpr, EXACT: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        """Program (tile, rows): PER latents, straight through their draws; w (H, F)."""
        slot = tl.arange(0, PER * PADDED)
        latent, klass = tl.program_id(0) * PER + slot // PADDED, slot % PADDED
        column, real = latent * CLASSES + klass, (klass < CLASSES) & (latent < LATENTS)
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        wide, keep = row.to(tl.int64)[:, None], (row < rows)[:, None] & real[None, :]
        at = places(0, CHUNK, GROUPS)
        from_row = w + column[None, None, :]
        weight = tl.load(from_row + at.to(tl.int64)[:, :, None] * w_stride, mask=real[None, None, :], other=0.0)
        given = tl.load(by_stoch + wide * by_stoch_stride + column[None, :], mask=keep, other=0.0).to(tl.float32)
        more = tl.load(by_logits + wide * by_logits_stride + column[None, :], mask=keep, other=0.0).to(tl.float32)
        unit = tl.load(unit_product + wide * unit_product_stride + column[None, :], mask=keep, other=0.0)
        raw = tl.load(logits + wide * logits_stride + column[None, :], mask=keep, other=-float("inf"))
        raw = tl.reshape(raw.to(tl.float32), [ROWS, PER, PADDED])
        top = tl.max(raw, 2)
        power = tl.exp(raw - tl.where(top == -float("inf"), 0.0, top)[:, :, None])
        sums = tl.sum(power, 2)
        probs = power / tl.where(sums == 0.0, 1.0, sums)[:, :, None]
        fresh = tl.load(reset + row * reset_stride, mask=inside, other=1)
        factor = tl.load(rate + row * rate_stride, mask=inside, other=0.0)
        wait(PDL)
        mean = sum_parts(along, along_stride, row, inside, TILES, TILES_PADDED) / H
        acc = tl.zeros([GROUPS, ROWS, PER * PADDED], tl.float32)
        for start in tl.static_range(0, H, CHUNK):
            if start > 0:
                place = from_row + (start + at).to(tl.int64)[:, :, None] * w_stride
                weight = tl.load(place, mask=real[None, None, :], other=0.0)
            acc = product(load_rows(grad, grad_stride, row, inside, start + at), weight, acc, EXACT)
        draw = factor[:, None] * (tl.sum(acc, 0) - mean[:, None] * unit.to(tl.float32))
        draw = tl.reshape(given + tl.where(fresh[:, None], 0.0, draw), [ROWS, PER, PADDED])
        through = (1.0 - unimix) * probs * (draw - tl.sum(probs * draw, 2)[:, :, None])
        result = tl.reshape(through, [ROWS, PER * PADDED]) + more
        tl.store(out + wide * out_stride + column[None, :], result.to(out.dtype.element_ty), mask=keep)
