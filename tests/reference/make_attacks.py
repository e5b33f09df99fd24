"""Make attacks.npz: FGSM and PGD by torchattacks and foolbox, on one small net with fixed weights.

Neither library is a dependency. To make the file again, install both beside the environment
(torchattacks==3.5.1, foolbox==3.3.4) and run this from the repository root.
Everything runs in float64: the sign of a gradient near 0 is then the same whoever computes it.
"""
from pathlib import Path

import numpy as np
import torch
from torch import nn

from robustnb.images import sample

EPS, STEP, STEPS, EPS_L2, STEP_L2 = 0.1, 0.03, 7, 2.0, 0.5


def lenet() -> nn.Module:
    "A small LeNet: two convolutions, two linear layers."
    return nn.Sequential(nn.Conv2d(1, 4, 5, stride=2), nn.Tanh(), nn.Conv2d(4, 8, 5, stride=2), nn.Tanh(),
                         nn.Flatten(), nn.Linear(8 * 16, 16), nn.Tanh(), nn.Linear(16, 10)).double()


def main() -> None:
    import foolbox
    import torchattacks

    torch.manual_seed(0)
    model, data = lenet().eval(), sample("mnist", "test").balanced(10)
    for parameter in model.parameters(): parameter.data = parameter.data.float().double()  # stored as float32
    x, y = data.float().double(), data.y
    out = dict(x=data.x.numpy(), y=y.numpy(), settings=np.array([EPS, STEP, STEPS, EPS_L2, STEP_L2]),
               versions=np.array([f"torchattacks {torchattacks.__version__}", f"foolbox {foolbox.__version__}", f"torch {torch.__version__}"]))
    out |= {f"weight.{name}": value.float().numpy() for name, value in model.state_dict().items()}
    results = {
        "torchattacks.fgsm": torchattacks.FGSM(model, eps=EPS)(x, y),
        "torchattacks.pgd": torchattacks.PGD(model, eps=EPS, alpha=STEP, steps=STEPS, random_start=False)(x, y),
        "torchattacks.pgd_l2": torchattacks.PGDL2(model, eps=EPS_L2, alpha=STEP_L2, steps=STEPS, random_start=False)(x, y),
    }
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    for name, attack, eps in [
        ("fgsm", foolbox.attacks.FGSM(random_start=False), EPS),
        ("pgd", foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=False), EPS),
        ("pgd_l2", foolbox.attacks.L2PGD(abs_stepsize=STEP_L2, steps=STEPS, random_start=False), EPS_L2),
    ]: results[f"foolbox.{name}"] = attack.run(wrapped, x, foolbox.criteria.Misclassification(y), epsilon=eps)
    out |= {name: (z - x).detach().float().numpy() for name, z in results.items()}
    np.savez_compressed(Path(__file__).with_name("attacks.npz"), **out)


if __name__ == "__main__": main()
