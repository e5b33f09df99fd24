"""The statistics by which a random corruption is compared with the published generator's (see README.md)."""
import torch
from torch import Tensor

NAMES = (
    "mean_r mean_g mean_b spread_r spread_g spread_b abs square p5 p50 p95 changed "
    "high_out high_diff corr_rg corr_gb corr_br lag_x lag_y black white"
).split()


def high_share(x: Tensor) -> Tensor:
    "Share of the power (mean removed) above 0.25 cycles/px; [n,C,H,W] -> [n]."
    h, w = x.shape[-2:]
    power = torch.fft.rfft2(x - x.mean((-2, -1), keepdim=True)).abs().square_()
    power[..., 1 : (w + 1) // 2] *= 2  # the half that rfft2 leaves out
    f = (torch.fft.fftfreq(h)[:, None] ** 2 + torch.fft.rfftfreq(w) ** 2).sqrt()
    return power[..., f > 0.25].sum((1, 2)) / power.sum((1, 2, 3)).clamp_min(1e-6)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    "Correlation of two fields, one value a draw; [n,...] -> [n]; 0 where one is constant."
    a, b = a.flatten(1), b.flatten(1)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / ((a * a).sum(1) * (b * b).sum(1)).sqrt().clamp_min(1e-6)


def statistics(out: Tensor, clean: Tensor) -> Tensor:
    "One row of NAMES a draw: out uint8 [n,3,H,W], clean uint8 [3,H,W] -> float32 [n,21]; d = out - clean in grey levels."
    d = out.float() - clean.float()
    level = (out.short() - clean.short()).abs().flatten(1).long()
    counts = torch.zeros(len(out), 256).scatter_add_(1, level, torch.ones(()).expand(level.shape))
    cumulative = counts.cumsum(1) / level.shape[1]
    percentiles = [(cumulative < q - 1e-6).sum(1).float() for q in (0.05, 0.5, 0.95)]  # least v with P(|d| <= v) >= q
    columns = [
        *d.mean((2, 3)).T, *d.std((2, 3), correction=0).T, d.abs().mean((1, 2, 3)), d.square().mean((1, 2, 3)),
        *percentiles, (d != 0).float().mean((1, 2, 3)), high_share(out.float()), high_share(d),
        *[correlation(d[:, a], d[:, b]) for a, b in ((0, 1), (1, 2), (2, 0))],
        correlation(d[..., :-1], d[..., 1:]), correlation(d[..., :-1, :], d[..., 1:, :]),
        (out == 0).float().mean((1, 2, 3)), (out == 255).float().mean((1, 2, 3)),
    ]
    return torch.stack(columns, 1)
