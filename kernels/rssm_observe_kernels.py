"""The kernels of `rssm_observe`'s launches, one for each."""

from __future__ import annotations

from genreward_fast.kernels.triton_support import HAS_TRITON

if HAS_TRITON:
    import triton
    import triton.language as tl

    from genreward_fast.kernels.latent_sample import drawn_classes
    from genreward_fast.kernels.rssm_tiles import load_rows, more_squares, normed, places, product, wait

    @triton.jit(do_not_specialize_on_alignment=["reset"])
    def _linear(
        x, x_stride, w, w_stride, bias, reset, reset_stride, out, out_stride, rows,
        K: tl.constexpr, CHUNK: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
        EXACT: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        """out = bias + x · wᵀ, but the bias alone in rows that are reset; w (columns, K)."""
        column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        along = w + column.to(tl.int64)[None, None, :] * w_stride
        weight = tl.load(along + places(0, CHUNK, GROUPS)[:, :, None])
        offset = tl.load(bias + column).to(tl.float32)
        wait(PDL)
        fresh = tl.load(reset + row * reset_stride, mask=inside, other=1)
        acc = tl.zeros([GROUPS, ROWS, COLUMNS], tl.float32)
        for start in tl.static_range(0, K, CHUNK):
            at = places(start, CHUNK, GROUPS)
            if start > 0:
                weight = tl.load(along + at[:, :, None])
            acc = product(load_rows(x, x_stride, row, inside, at), weight, acc, EXACT)
        y = tl.where(fresh[:, None], 0.0, tl.sum(acc, 0)) + offset[None, :]
        to = out + row.to(tl.int64)[:, None] * out_stride + column[None, :]
        tl.store(to, y.to(out.dtype.element_ty), mask=inside[:, None])

    @triton.jit(do_not_specialize_on_alignment=["reset"])
    def _hidden(
        embedded, embedded_stride, deter_scale, stoch_scale, deter, deter_stride, reset, reset_stride, w, w_stride,
        action, action_stride, out, out_stride, squares, squares_stride, rows, eps,
        H: tl.constexpr, PIECE: tl.constexpr, CHUNK: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr,
        COLUMNS: tl.constexpr, EXACT: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        """Program (tile, rows, block): some columns; w (blocks, PIECE + 3 H, PIECE)."""
        block = tl.program_id(2)
        tile = block * (PIECE // COLUMNS) + tl.program_id(0)
        local = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        at = places(0, CHUNK, GROUPS)
        from_block = w + block.to(tl.int64) * w_stride + local[None, None, :]
        weight = tl.load(from_block + at[:, :, None] * PIECE)
        weight0 = tl.load(from_block + (PIECE + at)[:, :, None] * PIECE)
        weight1 = tl.load(from_block + (PIECE + H + at)[:, :, None] * PIECE)
        scale0 = tl.load(deter_scale + at)
        scale1 = tl.load(stoch_scale + at)
        wait(PDL)
        value0 = load_rows(embedded, embedded_stride, row, inside, at)
        value1 = load_rows(embedded + H, embedded_stride, row, inside, at)
        own = load_rows(deter, deter_stride, row, inside, block * PIECE + at)
        fresh = tl.load(reset + row * reset_stride, mask=inside, other=1)
        column = tile * COLUMNS + tl.arange(0, COLUMNS)
        wide = row.to(tl.int64)[:, None]
        given = tl.load(action + wide * action_stride + column[None, :], mask=inside[:, None], other=0.0)
        acc = tl.zeros([GROUPS, ROWS, COLUMNS], tl.float32)
        for start in tl.static_range(0, PIECE, CHUNK):
            if start > 0:
                weight = tl.load(from_block + (start + at)[:, :, None] * PIECE)
                own = load_rows(deter, deter_stride, row, inside, block * PIECE + start + at)
            acc = product(tl.where(fresh[None, :, None], 0.0, own).to(own.dtype), weight, acc, EXACT)
        rate0 = more_squares(value0, embedded, embedded_stride, row, inside, H, CHUNK, GROUPS)
        rate0 = 1.0 / tl.sqrt(rate0 / H + eps)
        rate1 = more_squares(value1, embedded + H, embedded_stride, row, inside, H, CHUNK, GROUPS)
        rate1 = 1.0 / tl.sqrt(rate1 / H + eps)
        for start in tl.static_range(0, H, CHUNK):
            if start > 0:
                weight0 = tl.load(from_block + (PIECE + start + at)[:, :, None] * PIECE)
                weight1 = tl.load(from_block + (PIECE + H + start + at)[:, :, None] * PIECE)
                scale0 = tl.load(deter_scale + start + at)
                scale1 = tl.load(stoch_scale + start + at)
                value0 = load_rows(embedded, embedded_stride, row, inside, start + at)
                value1 = load_rows(embedded + H, embedded_stride, row, inside, start + at)
            acc = product(normed(value0, rate0, scale0), weight0, acc, EXACT)
            acc = product(normed(value1, rate1, scale1), weight1, acc, EXACT)
        y = (given.to(tl.float32) + tl.sum(acc, 0)).to(out.dtype.element_ty)
        tl.store(out + wide * out_stride + column[None, :], y, mask=inside[:, None])
        total = tl.sum(y.to(tl.float32) * y.to(tl.float32), 1)
        tl.store(squares + row.to(tl.int64) * squares_stride + tile, total, mask=inside)

    @triton.jit(do_not_specialize_on_alignment=["reset"])
    def _gates(
        hidden, hidden_stride, squares, squares_stride, scale, w, bias, deter, deter_stride, reset, reset_stride,
        out, out_stride, state, state_stride, rows, eps,
        D: tl.constexpr, PIECE: tl.constexpr, TILES: tl.constexpr, TILES_PADDED: tl.constexpr, CHUNK: tl.constexpr,
        GROUPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        """Program (tile, rows, block): the three gates of some columns; w (blocks, PIECE, 3 PIECE)."""
        block = tl.program_id(2)
        tile = block * (PIECE // COLUMNS) + tl.program_id(0)
        local = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        first = places(0, CHUNK, GROUPS)[:, :, None] * 3 * PIECE
        from_block = w + block.to(tl.int64) * PIECE * 3 * PIECE + local[None, None, :]
        weight0 = tl.load(from_block + first)
        weight1 = tl.load(from_block + first + PIECE)
        weight2 = tl.load(from_block + first + 2 * PIECE)
        of_gate = block * 3 * PIECE + local
        bias0 = tl.load(bias + of_gate).to(tl.float32)
        bias1 = tl.load(bias + of_gate + PIECE).to(tl.float32)
        bias2 = tl.load(bias + of_gate + 2 * PIECE).to(tl.float32)
        at = places(0, CHUNK, GROUPS) + block * PIECE
        factor = tl.load(scale + at)
        wait(PDL)
        wide = row.to(tl.int64)[:, None]
        part = tl.arange(0, TILES_PADDED)[None, :]
        total = tl.load(squares + wide * squares_stride + part, mask=inside[:, None] & (part < TILES), other=0.0)
        value = load_rows(hidden, hidden_stride, row, inside, at)
        column = tile * COLUMNS + tl.arange(0, COLUMNS)
        fresh = tl.load(reset + row * reset_stride, mask=inside, other=1)
        old = tl.load(deter + wide * deter_stride + column[None, :], mask=inside[:, None], other=0.0)
        rate = 1.0 / tl.sqrt(tl.sum(total, 1) / D + eps)
        acc0 = tl.zeros([GROUPS, ROWS, COLUMNS], tl.float32)
        acc1 = tl.zeros([GROUPS, ROWS, COLUMNS], tl.float32)
        acc2 = tl.zeros([GROUPS, ROWS, COLUMNS], tl.float32)
        for start in tl.static_range(0, PIECE, CHUNK):
            if start > 0:
                next = from_block + start * 3 * PIECE + first
                weight0 = tl.load(next)
                weight1 = tl.load(next + PIECE)
                weight2 = tl.load(next + 2 * PIECE)
                factor = tl.load(scale + start + at)
                value = load_rows(hidden, hidden_stride, row, inside, start + at)
            active = normed(value, rate, factor)
            acc0 = product(active, weight0, acc0, EXACT)
            acc1 = product(active, weight1, acc1, EXACT)
            acc2 = product(active, weight2, acc2, EXACT)
        kind = out.dtype.element_ty
        reset_gate = tl.sum(acc0, 0).to(kind)
        candidate = tl.sum(acc1, 0).to(kind)
        update = tl.sum(acc2, 0).to(kind)
        to = out + wide * out_stride + of_gate[None, :]
        tl.store(to, reset_gate, mask=inside[:, None])
        tl.store(to + PIECE, candidate, mask=inside[:, None])
        tl.store(to + 2 * PIECE, update, mask=inside[:, None])
        old = tl.where(fresh[:, None], 0.0, old.to(tl.float32))
        inner = tl.sigmoid(reset_gate.to(tl.float32) + bias0[None, :]) * (candidate.to(tl.float32) + bias1[None, :])
        u = tl.sigmoid(update.to(tl.float32) + bias2[None, :] - 1.0)
        new = old + u * (2.0 * tl.sigmoid(2.0 * inner) - 1.0 - old)
        tl.store(state + wide * state_stride + column[None, :], new.to(kind), mask=inside[:, None])

    @triton.jit(do_not_specialize_on_alignment=["reset"])
    def _project(
        deter, deter_stride, post, post_stride, evidence, evidence_stride, after, after_stride, w, w_stride, bias,
        reset, reset_stride, embedded, embedded_stride, rows,
        K: tl.constexpr, H: tl.constexpr, POSTERIOR: tl.constexpr, CHUNK: tl.constexpr, GROUPS: tl.constexpr,
        ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXACT: tl.constexpr, PDL: tl.constexpr,
    ):  # fmt: skip
        """Programs of the first H columns (with POSTERIOR) add to the evidence, the others embed the deter."""
        tile = tl.program_id(0)
        to_posterior = POSTERIOR and tile < H // COLUMNS
        if POSTERIOR and not to_posterior:
            tile -= H // COLUMNS
        column = tile * COLUMNS + tl.arange(0, COLUMNS)
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        along = w + column.to(tl.int64)[None, None, :] * w_stride
        if to_posterior:
            along = post + column.to(tl.int64)[None, None, :] * post_stride
        weight = tl.load(along + places(0, CHUNK, GROUPS)[:, :, None])
        if to_posterior:
            other = evidence + row.to(tl.int64)[:, None] * evidence_stride + column[None, :]
        else:
            other = bias + tl.zeros([ROWS], tl.int32)[:, None] + column[None, :]
        added = tl.load(other, mask=inside[:, None], other=0.0).to(tl.float32)
        wait(PDL)
        fresh = tl.load(reset + row * reset_stride, mask=inside & (not to_posterior), other=0)
        acc = tl.zeros([GROUPS, ROWS, COLUMNS], tl.float32)
        for start in tl.static_range(0, K, CHUNK):
            at = places(start, CHUNK, GROUPS)
            if start > 0:
                weight = tl.load(along + at[:, :, None])
            acc = product(load_rows(deter, deter_stride, row, inside, at), weight, acc, EXACT)
        y = added + tl.where(fresh[:, None], 0.0, tl.sum(acc, 0))
        wide = row.to(tl.int64)[:, None]
        to = embedded + wide * embedded_stride
        if to_posterior:
            to = after + wide * after_stride
        tl.store(to + column[None, :], y.to(after.dtype.element_ty), mask=inside[:, None])

    @triton.jit
    def _sample(
        evidence, evidence_stride, scale, w, w_stride, bias, uniform, uniform_stride, logits, logits_stride, stoch,
        stoch_stride, index, index_stride, rows, eps, unimix,
        H: tl.constexpr, LATENTS: tl.constexpr, CLASSES: tl.constexpr, PADDED: tl.constexpr, PER: tl.constexpr,
        FORCED: tl.constexpr, CHUNK: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, EXACT: tl.constexpr,
        PDL: tl.constexpr,
    ):  # fmt: skip
        """Program (tile, rows): PER latents, each with its classes padded to a power of two."""
        slot = tl.arange(0, PER * PADDED)
        latent, klass = tl.program_id(0) * PER + slot // PADDED, slot % PADDED
        column, real = latent * CLASSES + klass, (klass < CLASSES) & (latent < LATENTS)
        row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        inside = row < rows
        along = w + column.to(tl.int64)[None, None, :] * w_stride
        weight = tl.load(along + places(0, CHUNK, GROUPS)[:, :, None], mask=real[None, None, :], other=0.0)
        offset = tl.load(bias + column, mask=real, other=0.0).to(tl.float32)
        at = places(0, CHUNK, GROUPS)
        factor = tl.load(scale + at)
        wait(PDL)
        value = load_rows(evidence, evidence_stride, row, inside, at)
        wide = row.to(tl.int64)[:, None]
        mine = tl.program_id(0) * PER + tl.arange(0, PER)[None, :]
        exists = inside[:, None] & (mine < LATENTS)
        if FORCED:
            drawn = tl.load(index + wide * index_stride + mine, mask=exists, other=0).to(tl.int32)
        else:
            level = tl.load(uniform + wide * uniform_stride + mine, mask=exists, other=0.0)
        rate = more_squares(value, evidence, evidence_stride, row, inside, H, CHUNK, GROUPS)
        rate = 1.0 / tl.sqrt(rate / H + eps)
        acc = tl.zeros([GROUPS, ROWS, PER * PADDED], tl.float32)
        for start in tl.static_range(0, H, CHUNK):
            if start > 0:
                weight = tl.load(along + (start + at)[:, :, None], mask=real[None, None, :], other=0.0)
                factor = tl.load(scale + start + at)
                value = load_rows(evidence, evidence_stride, row, inside, start + at)
            acc = product(normed(value, rate, factor), weight, acc, EXACT)
        kind = logits.dtype.element_ty
        y = (tl.sum(acc, 0) + offset[None, :]).to(kind)
        keep = inside[:, None] & real[None, :]
        tl.store(logits + wide * logits_stride + column[None, :], y, mask=keep)
        if not FORCED:
            raw = tl.reshape(tl.where(real[None, :], y.to(tl.float32), -float("inf")), [ROWS, PER, PADDED])
            drawn = drawn_classes(raw, level, unimix, CLASSES)
            tl.store(index + wide * index_stride + mine, drawn.to(tl.int64), mask=exists)
        spread = tl.reshape(tl.broadcast_to(drawn[:, :, None], [ROWS, PER, PADDED]), [ROWS, PER * PADDED])
        hit = tl.where(spread == klass[None, :], 1.0, 0.0)
        tl.store(stoch + wide * stoch_stride + column[None, :], hit.to(kind), mask=keep)
