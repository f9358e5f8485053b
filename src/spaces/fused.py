"""The supernet's function on the same parameters, written to be fast.

The plain supernet (src/spaces/cells.py) is bound by memory traffic and by the number of kernel launches, not by its
arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from src.spaces.cells import Cell, CellPlan, Supernet
from src.spaces.choices import LayerChoice
from src.spaces.operations import DilatedConv, FactorizedReduce, Pool, SeparableConv, Zero

CHANNELS_LAST = torch.channels_last


class FusedSupernet(Supernet):
    def cell(self, plan: CellPlan, *, nodes: int, candidates: Sequence[str]) -> nn.Module:
        return FusedCell(plan, nodes=nodes, candidates=candidates)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.contiguous(memory_format=CHANNELS_LAST))


class FusedCell(Cell):
    def forward(self, before_last: Tensor, last: Tensor) -> Tensor:
        states = [self.preprocess0(before_last), self.preprocess1(last)]
        inputs = [_Inputs() for _ in self.nodes]
        batches = _Statistics()
        for index in range(2):
            self._send(index, states[index], inputs, batches)
        for index, node in enumerate(self.nodes):
            rows = torch.stack([edge.weights for edge in node.edges])
            states.append(inputs[index].mix(rows, batches))
            self._send(index + 2, states[-1], inputs, batches)
        batches.update()
        return torch.cat(states[2:], dim=1)

    def _send(self, index, state, inputs, batches):
        targets = list(range(max(0, index - 1), len(self.nodes)))
        if not targets:
            return
        edges = [self.nodes[t].edges[index] for t in targets]
        relu = F.relu(state)
        halves = {}
        first_halves = []
        for column, name in enumerate(edges[0].candidates):
            ops = [edge.candidates[name] for edge in edges]
            op = ops[0]
            if isinstance(op, Zero):
                continue
            if isinstance(op, DilatedConv):
                for t, o, d in zip(targets, ops, _depthwise(relu, [o[1] for o in ops])):
                    inputs[t].folded.append((column, d, o[2], o[3]))
            elif isinstance(op, SeparableConv):
                ds = _depthwise(relu, [o[0][1] for o in ops])
                zs = _normalised_relu(ds, [o[0][2] for o in ops], [o[0][3] for o in ops], batches)
                for t, o, z in zip(targets, ops, zs):
                    (d,) = _depthwise(z, [o[1][1]])
                    inputs[t].folded.append((column, d, o[1][2], o[1][3]))
            elif isinstance(op, Pool):
                for t, v in zip(targets, _pool(state, ops, batches)):
                    inputs[t].plain.append((column, v))
            else:
                for t, o in zip(targets, ops):
                    inputs[t].plain.append((column, o(state)))


class _Inputs:
    def __init__(self):
        self.plain = []
        self.folded = []

    def mix(self, rows, batches):
        self.plain.sort(key=lambda x: x[0])
        self.folded.sort(key=lambda x: x[0])
        plain_columns = sorted({x[0] for x in self.plain})
        folded_columns = sorted({x[0] for x in self.folded})
        weights = torch.stack([x[2].weight.flatten(1) for x in self.folded]) if self.folded else None
        return _Mix.apply(
            (plain_columns, folded_columns, [x[3] for x in self.folded], batches),
            rows,
            weights,
            *(x[1] for x in self.plain),
            *(x[1] for x in self.folded),
        )


class _Statistics:
    def __init__(self):
        self.norms, self.means, self.variances = [], [], []

    def add(self, norms, means, variances):
        self.norms += norms
        self.means += means
        self.variances += variances

    @torch.no_grad()
    def update(self):
        if not self.norms:
            return
        momentum = self.norms[0].momentum
        torch._foreach_lerp_([n.running_mean for n in self.norms], self.means, momentum)
        torch._foreach_lerp_([n.running_var for n in self.norms], self.variances, momentum)
        torch._foreach_add_([n.num_batches_tracked for n in self.norms], 1)


def _pool(state, ops, batches):
    pooled = ops[0].pool(state)
    norms = [op.norm for op in ops]
    if not norms[0].training:
        return [norm(pooled) for norm in norms]
    mean, var = torch.zeros(2, state.shape[1], dtype=norms[0].running_mean.dtype, device=state.device)
    out = F.batch_norm(pooled, mean, var, training=True, momentum=1.0, eps=norms[0].eps)
    batches.add(norms, [mean] * len(norms), [var] * len(norms))
    return [out] * len(norms)


def _depthwise(x, convs):
    conv = convs[0]
    k, s, p, d = conv.kernel_size[0], conv.stride[0], conv.padding[0], conv.dilation[0]
    if s == d > 1:
        x = x[:, :, ::s, ::s].contiguous(memory_format=CHANNELS_LAST)
        p, s, d = p // s, 1, 1
    weights = [c.weight for c in convs]
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x = x.to(dtype)
        weights = [w.to(dtype) for w in weights]
    return _Depthwise.apply((s, p, d), x, *weights)


def _normalised_relu(ds, convs, norms, batches):
    return _NormReLU.apply((norms, batches), torch.stack([c.weight.flatten(1) for c in convs]), *ds)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, geometry, x, *weights):
        ctx.geometry = geometry
        ctx.save_for_backward(x, *weights)
        with torch.autocast(x.device.type, enabled=False):
            return tuple(F.conv2d(x, w, None, *geometry, x.shape[1]) for w in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        x, *weights = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        grads = [g.contiguous(memory_format=CHANNELS_LAST) for g in grads]
        dx = None
        dws = [None] * len(weights)
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[1]:
                for g, w in zip(grads, weights):
                    if stride == 1 and x.is_cpu:
                        part = F.conv2d(g, w.flip(2, 3), None, 1, padding, dilation, x.shape[1])
                    else:
                        part = _conv_backward(g, x, w, ctx.geometry, [True, False, False])[0]
                    dx = part if dx is None else dx.add_(part)
            if any(ctx.needs_input_grad[2:]):
                if x.is_cpu:
                    dws = _weight_gradients(x, grads, weights[0].shape[2], stride, padding, dilation)
                else:
                    dws = [_conv_backward(g, x, w, ctx.geometry, [False, True, False])[1] for g, w in zip(grads, weights)]
        return None, dx, *dws


def _conv_backward(g, x, w, geometry, mask):
    s, p, d = geometry
    p = p if isinstance(p, list) else [p, p]
    return torch.ops.aten.convolution_backward(g, x, w, None, [s, s], p, [d, d], False, [0, 0], x.shape[1], mask)


def _weight_gradients(x, grads, k, stride, padding, dilation):
    if dilation == 2:
        x = _subgrids(x)
        grads = [_subgrids(g) for g in grads]
        padding //= 2
    strips = []
    for left in range(0, k, 3):
        right = min(left + 3, k)
        crop = (padding - left, padding - k + right)
        strips.append((F.pad(x, crop), x.new_empty(x.shape[1], 1, k, right - left)))
    return [
        torch.cat([_conv_backward(g, xs, ws, (stride, [padding, 0], 1), [False, True, False])[1] for xs, ws in strips], dim=3)
        for g in grads
    ]


def _subgrids(x):
    x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)) if x.shape[2] % 2 or x.shape[3] % 2 else x
    return torch.cat([x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)])


class _Folded(NamedTuple):
    mean: Tensor  # (K, C) mean of z
    scale: Tensor  # (K, C)
    mu: Tensor  # (K, C)
    cov: Tensor  # (K, C, C)


def _flat(x):
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _unflat(y, like_shape):
    n, _, h, w = like_shape
    return y.view(n, h, w, -1).permute(0, 3, 1, 2)


def _wide(x):
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _fold(ds, weights, norms, batches):
    k, _, c = weights.shape
    if not norms[0].training:
        mean = torch.stack([n.running_mean for n in norms])
        var = torch.stack([n.running_var for n in norms])
        return _Folded(mean, (var + norms[0].eps).rsqrt(), None, None)
    pixels = ds[0].shape[0]
    gram = weights.new_empty(k, c, c)
    mu = weights.new_empty(k, c)
    for i, d in enumerate(ds):
        d = _wide(d)
        torch.mm(d.t(), d, out=gram[i])
        torch.sum(d, 0, out=mu[i])
    mu /= pixels
    cov = gram.div_(pixels).sub_(mu[:, :, None] * mu[:, None, :])
    mean = (weights @ mu[:, :, None])[:, :, 0]
    var = ((weights @ cov) * weights).sum(2).clamp_(min=0)
    batches.add(norms, list(mean.unbind()), list((var * (pixels / max(pixels - 1, 1))).unbind()))
    return _Folded(mean, (var + norms[0].eps).rsqrt(), mu, cov)


def _unfold(gs, totals, ds, weights, factor, folded, need_weight):
    """Returns dd, q, dW."""
    mean, scale, mu, cov = folded
    pixels = ds[0].shape[0]
    products = torch.empty_like(weights)
    for i, (g, d) in enumerate(zip(gs, ds)):
        torch.mm(_wide(g).t(), _wide(d), out=products[i])
    q = scale * ((weights * products).sum(2) - mean * totals)
    a = factor * scale
    direct = (a[:, :, None] * weights).to(ds[0].dtype)
    dds = []
    dw = None
    if mu is None:
        dds = [g @ w for g, w in zip(gs, direct)]
        if need_weight:
            dw = a[:, :, None] * products
    else:
        bend = a * scale * q / pixels
        M = -(weights * bend[:, :, None]).transpose(1, 2) @ weights
        const = (weights.transpose(1, 2) @ (bend * mean - a * totals / pixels)[:, :, None])[:, :, 0]
        M, const = M.to(ds[0].dtype), const.to(ds[0].dtype)
        for i, (g, d) in enumerate(zip(gs, ds)):
            dds.append(torch.addmm(const[i], g, direct[i]).addmm_(d, M[i]))
        if need_weight:
            dw = a[:, :, None] * (
                products - totals[:, :, None] * mu[:, None, :] - (scale * q)[:, :, None] * (weights @ cov)
            )
    return dds, q, dw


class _NormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, static, weights, *inputs):
        norms, batches = static
        with torch.autocast(inputs[0].device.type, enabled=False):
            ds = [_flat(d) for d in inputs]
            f = _fold(ds, weights, norms, batches)
            w = (f.scale[:, :, None] * weights).to(ds[0].dtype)
            b = (-f.scale * f.mean).to(ds[0].dtype)
            out = tuple(
                _unflat(torch.addmm(b[i], d, w[i].t()).relu_(), inputs[0].shape) for i, d in enumerate(ds)
            )
        ctx.save_for_backward(weights, *f, *inputs, *out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        weights, mean, scale, mu, cov, *rest = ctx.saved_tensors
        inputs, out = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        with torch.autocast(weights.device.type, enabled=False):
            gs = [torch.ops.aten.threshold_backward(_flat(g), _flat(o), 0) for g, o in zip(grads, out)]
            totals = torch.stack([_wide(g).sum(0) for g in gs])
            dds, _, dw = _unfold(
                gs, totals, [_flat(d) for d in inputs], weights, 1.0, _Folded(mean, scale, mu, cov), ctx.needs_input_grad[1]
            )
            dds = [_unflat(d, inputs[0].shape) for d in dds]
        return None, dw, *dds


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, static, rows, weights, *tensors):
        plain_columns, folded_columns, norms, batches = static
        n = len(plain_columns) * len(rows)
        plain, inputs = tensors[:n], tensors[n:]
        with torch.autocast(tensors[0].device.type, enabled=False):
            f = _Folded(None, None, None, None)
            out = None
            shape = tensors[0].shape
            if inputs:
                ds = [_flat(d) for d in inputs]
                f = _fold(ds, weights, norms, batches)
                alphas = torch.cat([rows[:, c] for c in folded_columns])
                a = alphas[:, None] * f.scale
                w = (a[:, :, None] * weights).to(ds[0].dtype)
                b = -(a * f.mean).sum(0).to(ds[0].dtype)
                out = torch.addmm(b, ds[0], w[0].t())
                for d, wi in zip(ds[1:], w[1:]):
                    out.addmm_(d, wi.t())
            else:
                out = torch.zeros_like(_flat(plain[0]))
            alphas = [r for c in plain_columns for r in rows[:, c].to(out.dtype).unbind()]
            for x, alpha in zip(plain, alphas):
                out.addcmul_(_flat(x).to(out.dtype), alpha)
        ctx.columns = plain_columns, folded_columns
        ctx.save_for_backward(rows, weights, *f, *tensors)
        return _unflat(out, shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, weights, mean, scale, mu, cov, *tensors = ctx.saved_tensors
        plain_columns, folded_columns = ctx.columns
        n = len(plain_columns) * len(rows)
        plain, inputs = tensors[:n], tensors[n:]
        with torch.autocast(grad.device.type, enabled=False):
            g = _flat(grad).contiguous()
            drows = torch.zeros_like(rows)
            dds, dw = [], None
            if inputs:
                totals = _wide(g).sum(0).expand(len(inputs), -1)
                alphas = torch.cat([rows[:, c] for c in folded_columns])[:, None]
                ds = [_flat(d) for d in inputs]
                dds, q, dw = _unfold(
                    [g] * len(ds), totals, ds, weights, alphas, _Folded(mean, scale, mu, cov), ctx.needs_input_grad[2]
                )
                dds = [_unflat(d, inputs[0].shape) for d in dds]
                for c, col in zip(folded_columns, q.sum(1).view(-1, len(rows))):
                    drows[:, c] = col
            flat = g.view(-1)
            dplain = []
            for i, x in enumerate(plain):
                c, e = plain_columns[i // len(rows)], i % len(rows)
                drows[e, c] = torch.dot(_wide(flat), _wide(_flat(x).reshape(-1)))
                dplain.append(_unflat(g * rows[e, c].to(g.dtype), x.shape).to(x.dtype))
        return None, drows, dw, *dplain, *dds
