"""Everything that asks a model about labelled images: what is no logit, no image, no label or no count is refused by
all of them alike, and what only has another type is taken by all of them alike."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robustnb.adversarial import (
    AdversarialTraining, Distillation, EnsembleAdversarial, FreeAdversarialTraining, RobustStopping, Trades, distill,
    gradient_alignment, loss_surface, masking_checks, survivors, zero_gradients)
from robustnb.anchored import Anchored
from robustnb.attacks import check_values, fgsm, fgsm_at_distance, pgd
from robustnb.calibration import conformal_sets, conformal_threshold, set_coverage
from robustnb.dem_hec import DemHEC
from robustnb.domain import DANN, adda, features, mnist_m, tent
from robustnb.images import ImageSet, sample
from robustnb.layers import Classifier, Dropout
from robustnb.levels import fgsm_levels, gaussian_levels
from robustnb.metrics import ece
from robustnb.resampling import interval, proportion_interval
from robustnb.robustness import evaluate, weights_hash
from robustnb.training import Recipe, fit, predict
from robustnb.uncertainty import Ensemble, LastLayerLaplace, mc_dropout, temperature_scale
from robustnb.worst_case import apgd, robust_accuracy, square

QUIET = dict(progress=False)
digits = sample("mnist", "test").take(slice(0, 120))


def made(outputs: int = 10) -> Classifier:
    "Right about most of the digits, by nearest class mean."
    train = sample("mnist")
    means = torch.stack([train.float()[train.y == c].mean(0) for c in range(10)]).flatten(1)
    head = nn.Linear(784, outputs)
    with torch.no_grad(): head.weight.copy_(means[:outputs]), head.bias.copy_(-means[:outputs].square().sum(1) / 2)
    return Classifier({"drop": Dropout(0.2), "flat": nn.Flatten()}, head).eval()


net = made()


class After(nn.Module):
    "A function of a network's answer."
    def __init__(self, function, model=net):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x): return self.function(self.model(x))


def short(model, **options): return robust_accuracy(model, digits, 0.05, steps=2, queries=2, **QUIET, **options)


ASKERS = {
    "robust_accuracy": short,
    "robust_accuracy, square": lambda model: short(model, attack="square"),
    "robust_accuracy, noise": lambda model: short(model, attack="noise"),
    "robust_accuracy, light": lambda model: short(model, attack="light"),
    "survivors": lambda model: survivors(model, digits, 0.05, "linf", "pgd", steps=1),
    "zero_gradients": lambda model: zero_gradients(model, digits),
    "masking_checks": lambda model: masking_checks(model, digits, 0.05, steps=2, queries=2, **QUIET),
    "evaluate": lambda model: evaluate(model, digits, ["fog"], [1], resamples=5, show=False),
    "gaussian_levels": lambda model: gaussian_levels(model, digits, (1.0,)),
    "fgsm_levels": lambda model: fgsm_levels(model, digits, (1.0,)),
    "temperature_scale": lambda model: temperature_scale(model, digits),
    "Ensemble": lambda model: Ensemble([model, model])(digits.float()),
    "mc_dropout": lambda model: mc_dropout(model, digits.x, 2),
    "distill": lambda model: distill(model, made(), digits, 2.0, Recipe(epochs=1), **QUIET),
    "DemHEC": lambda model: fit(made(), digits, DemHEC(teacher=model, frozen=()), Recipe(epochs=1), **QUIET),
    "Anchored": lambda model: fit(made(), digits, Anchored(teacher=model), Recipe(epochs=1), **QUIET),
}
WITHOUT_LABELS = {"Ensemble", "mc_dropout"}
WRONG = {
    "probabilities": (lambda z: z.softmax(1), "probabilities"),
    "NaN": (lambda z: z * float("nan"), "not finite|not a number|finite logits"),
    "too few": (lambda z: z[:, :4], "has 4 outputs|of 4 outputs|labels in 0..3"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("asker", ASKERS)
def test_no_asker_takes_answers_that_are_no_logits(asker, wrong):
    if wrong == "too few" and asker in WITHOUT_LABELS: pytest.skip("asks without labels")
    function, said = WRONG[wrong]
    with pytest.raises(ValueError, match=said): ASKERS[asker](After(function))


@pytest.mark.parametrize("asker", [name for name in ASKERS if name not in WITHOUT_LABELS])
def test_answers_of_another_shape_are_told(asker):
    if asker in ("distill", "DemHEC", "Anchored"): pytest.skip("a teacher's shape is held against the student's")
    with pytest.raises(ValueError, match="logits"): ASKERS[asker](After(lambda z: z.argmax(1)))


@pytest.mark.parametrize("asker", ASKERS)
def test_a_model_of_doubles_is_asked_in_doubles(asker):
    "Its answers are those of the same weights in float32, but for rounding: where they are numbers, nearly equal."
    ours, doubles = ASKERS[asker](net), ASKERS[asker](copy.deepcopy(net).double())
    if isinstance(ours, torch.Tensor) and ours.is_floating_point():
        torch.testing.assert_close(ours, doubles, rtol=1e-4, atol=1e-4)
    if asker == "temperature_scale": assert abs(ours.temperature - doubles.temperature) < 1e-4
    if asker.startswith("robust"): assert abs(ours.accuracy - doubles.accuracy) < 0.02 and ours.clean == doubles.clean
    if asker == "evaluate" or "levels" in asker: assert (ours.accuracy - doubles.accuracy).abs().max() < 0.02
    if asker == "zero_gradients": assert ours == doubles
    if asker == "survivors": assert (ours != doubles).float().mean() < 0.02


def test_robustness_of_probabilities_would_have_looked_high():
    "Why they are refused: on a linear net whose accuracy under attack is known, PGD on its softmax stands still."
    line, eps = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), 0.1
    weights = 1000 * torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    with torch.no_grad(): line[1].weight.copy_(weights), line[1].bias.zero_()
    x = torch.rand(200, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    x = x * 0.6 + 0.2  # no wall in reach
    data = ImageSet(x, line(x).argmax(1), ("a", "b"), "linear")
    lead = (line(x)[:, 0] - line(x)[:, 1]).abs() / 1000  # it falls by eps a weight: by 4 eps
    exact = float((lead > 4 * eps).float().mean())
    found = robust_accuracy(line, data, eps, attack="light", queries=10, **QUIET)
    assert abs(found.accuracy - exact) < 0.011
    with pytest.raises(ValueError, match="probabilities"):
        robust_accuracy(nn.Sequential(line, nn.Softmax(1)), data, eps, attack="light", **QUIET)


start = lambda: torch.Generator().manual_seed(0)
LABELLED = {
    "pgd": lambda y: pgd(net, digits.float(), y, 0.1, 0.1, 1, random_start=False),
    "fgsm": lambda y: fgsm(net, digits.float(), y, 0.1),
    "apgd": lambda y: apgd(net, digits.float(), y, 0.1, 3, generator=start()),
    "apgd, margin": lambda y: apgd(net, digits.float(), y, 0.1, 3, loss="margin", generator=start()),
    "square": lambda y: square(net, digits.float(), y, 0.1, 3, generator=start()),
    "fgsm_at_distance": lambda y: fgsm_at_distance(net, digits.float(), y, 1.0),
    "gradient_alignment": lambda y: gradient_alignment(net, digits.float(), y, 0.1, start()),
    "loss_surface": lambda y: loss_surface(net, digits.float(), y, 0.1, 2, start()),
}


@pytest.mark.parametrize("name", LABELLED)
def test_labels_of_any_whole_type_are_taken_and_fractions_refused(name):
    found = [LABELLED[name](digits.y.to(kind)) for kind in (torch.int64, torch.int32, torch.uint8)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    with pytest.raises(TypeError, match="whole numbers"): LABELLED[name](digits.y + 0.5)
    with pytest.raises(ValueError, match="10 outputs, but the labels go up to 12"): LABELLED[name](digits.y + 3)


def test_conformal_pair_takes_the_same_labels():
    probs, small = net(digits.float()).softmax(1).detach(), digits.y.to(torch.uint8)
    sets = conformal_sets(probs, conformal_threshold(probs, small))
    assert set_coverage(sets, small) == set_coverage(sets.numpy(), digits.y.numpy())


COUNTED = {
    "robust_accuracy": lambda batch: short(net, batch=batch),
    "survivors": lambda batch: survivors(net, digits, 0.1, "linf", "fgsm", batch=batch),
    "zero_gradients": lambda batch: zero_gradients(net, digits, batch=batch),
    "predict": lambda batch: predict(net, digits, batch),
    "features": lambda batch: features(net, digits, batch),
    "mc_dropout": lambda batch: mc_dropout(net, digits.x, 2, batch=batch),
    "fgsm_at_distance": lambda batch: fgsm_at_distance(net, digits.float(), digits.y, 1.0, batch=batch),
    "Laplace": lambda batch: LastLayerLaplace(net).fit(digits, batch),
    "evaluate": lambda batch: evaluate(net, digits, ["fog"], [1], batch=batch, show=False),
}


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_nothing_is_no_result(name, batch):
    with pytest.raises(ValueError, match="batch must be"): COUNTED[name](batch)


def test_levels_are_looked_at_before_the_work():
    asked = []
    model = lambda x: asked.append(len(x)) or net(x)
    short_run = lambda **options: evaluate(model, digits, ["fog"], [1], **options)
    for level in (95, 0.0, 1.0):
        with pytest.raises(ValueError, match="such as 0.95"): short_run(level=level)
        with pytest.raises(ValueError, match="such as 0.95"): robust_accuracy(model, digits, 0.1, level=level, **QUIET)
        with pytest.raises(ValueError, match="such as 0.95"): interval(torch.rand(9).numpy(), level)
        with pytest.raises(ValueError, match="such as 0.95"): proportion_interval([1], 2, level)
    with pytest.raises(ValueError, match="resamples must be"): short_run(resamples=0)
    with pytest.raises(TypeError, match="did you mean 'batch'"): short_run(bath=3)
    assert not asked


def test_a_clean_bill_needs_images_that_are_right():
    wrong = ImageSet(digits.x, net(digits.float()).argmin(1), digits.classes, "mislabelled")
    few = digits.take((net(digits.float()).argmax(1) == digits.y).nonzero()[:3, 0])
    mixed = ImageSet(torch.cat([few.x, wrong.x]), torch.cat([few.y, wrong.y]), digits.classes, "mostly mislabelled")
    with pytest.warns(UserWarning, match="right about 3 of 123 images, which decides little"):
        masking_checks(net, mixed, 0.1, steps=2, queries=2, **QUIET)
    with pytest.raises(ValueError, match="about 0 of 120 images, which decides nothing"):
        masking_checks(net, wrong, 0.1, **QUIET)
    with pytest.raises(ValueError, match="above 0, got 0"): masking_checks(net, digits, 0.0, **QUIET)
    for settings in (dict(steps=0), dict(queries=0)):
        with pytest.raises(ValueError, match="at least 1, got 0"): masking_checks(net, digits, 0.1, **settings, **QUIET)
    with pytest.raises(ValueError, match="eps=8/255 meant"): robust_accuracy(net, digits, 8, **QUIET)


SCALED = {
    "ImageSet": lambda x: ImageSet(x, digits.y, digits.classes, "mine"),
    "DANN": lambda x: DANN(x),
    "adda, target": lambda x: adda(net, digits.float(), x), "adda, source": lambda x: adda(net, x, digits.float()),
    "tent": lambda x: tent(nn.Sequential(nn.BatchNorm2d(1), net), x),
    "features": lambda x: features(net, x), "mc_dropout": lambda x: mc_dropout(net, x, 2),
}


@pytest.mark.parametrize("name", SCALED)
def test_floats_on_another_scale_are_refused(name):
    for x in (digits.x.float(), (digits.float() - 0.13) / 0.31, digits.float() * float("nan")):
        with pytest.raises(ValueError, match=r"must lie in \[0,1\]"): SCALED[name](x)


MODULES = {
    "temperature_scale": lambda model: temperature_scale(model, digits), "Laplace": LastLayerLaplace,
    "mc_dropout": lambda model: mc_dropout(model, digits.x), "tent": lambda model: tent(model, digits),
    "Distillation": Distillation, "EnsembleAdversarial": lambda model: EnsembleAdversarial([model]),
    "Ensemble": lambda model: Ensemble([model]), "predict": lambda model: predict(model, digits),
    "features": lambda model: features(model, digits),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_function_is_no_network(name):
    with pytest.raises(TypeError, match="must be an nn.Module, got function"): MODULES[name](lambda x: net(x))


def test_networks_without_features_are_told_what_they_lack():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    for call in (lambda: features(plain, digits), lambda: adda(plain, digits, digits),
                 lambda: fit(plain, digits, DANN(digits), Recipe(epochs=1), **QUIET)):
        with pytest.raises(TypeError, match="Sequential has no embed and no head.*Classifier"): call()
    with pytest.raises(ValueError, match="drawn by `fit`"): DANN(digits).loss(net, digits.float(), digits.y)
    with pytest.raises(ValueError, match=r"a single one is \[net\]"): Ensemble(plain)
    with pytest.raises(TypeError, match="ImageSet.*got tuple"): robust_accuracy(net, (digits.x, digits.y), 0.1, **QUIET)


def test_teacher_and_student_are_two_and_know_the_same_classes():
    student = made()
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ValueError, match="the same net"): distill(student, student, digits, 2.0, **QUIET)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), student.state_dict().values()))
    few = digits.take(digits.y < 4)
    few = ImageSet(few.x, few.y, tuple("0123"), "few")
    for objective in (Distillation(net, 2.0), Anchored(teacher=net), DemHEC(teacher=net, frozen=())):
        with pytest.raises(ValueError, match="teacher of 10 outputs has no answer for each of the student's 4"):
            fit(made(4), few, objective, Recipe(epochs=1), **QUIET)


@pytest.mark.parametrize("make, said", [
    (lambda: AdversarialTraining(steps=2.5), "steps must be a whole number"),
    (lambda: AdversarialTraining(step=-1), "step is the length of a step"),
    (lambda: AdversarialTraining(watch=-1), "watch must be a whole number, at least 0"),
    (lambda: AdversarialTraining(eps="8/255"), "eps is a radius"), (lambda: Trades(beta=float("nan")), "beta"),
    (lambda: Trades(step=0.0), "step is the length"), (lambda: FreeAdversarialTraining(replays=0), "replays"),
    (lambda: RobustStopping(AdversarialTraining(), digits, steps=0), "steps must be"),
    (lambda: DemHEC(lambda_c=float("nan")), "weights must be"), (lambda: Anchored(weight=float("nan")), "weight >= 0"),
    (lambda: Recipe(epochs=1.5), "epochs must be a whole number"), (lambda: Recipe(batch=2.5), "batch must be a whole"),
    (lambda: Recipe(momentum=2.0), "momentum lies in"), (lambda: Recipe(weight_decay=-1), "weight_decay must be"),
    (lambda: ece(torch.eye(2), torch.arange(2), bins=2.5), "bins must be a whole number"),
])
def test_settings_that_cannot_be_are_refused_when_they_are_given(make, said):
    with pytest.raises(ValueError, match=said): make()


def test_mnist_m_needs_grey_digits_and_photographs():
    photos = sample("cifar10")
    for digit, photo, said in ((digits, digits, "photos must be uint8"), (photos, photos, "digits must be uint8")):
        with pytest.raises(ValueError, match=said): mnist_m(digits=digit, photos=photo)


def test_a_training_in_doubles_follows_the_one_in_floats():
    losses = []
    for kind in (torch.float32, torch.float64):
        model = made().to(kind)
        recipe = Recipe(epochs=2, batch=60, optimizer="sgd", lr=1e-3)
        losses.append(fit(model, digits, None, recipe, **QUIET).frame().loss)
        assert next(model.parameters()).dtype == kind
    assert (losses[0] - losses[1]).abs().max() < 0.05


def test_nan_under_attack_is_no_right_answer():
    "A net that breaks on changed images: class 0 is where argmax of NaN points."
    zeros = digits.take(digits.y == 0)
    moved = lambda x: (x - zeros.float()[: len(x)]).abs().amax((1, 2, 3)) > 0
    fragile = lambda x: net(x) * torch.where(moved(x), float("nan"), 1.0)[:, None]
    if not (net(zeros.float()).argmax(1) == 0).all(): zeros = zeros.take(net(zeros.float()).argmax(1) == 0)
    found = robust_accuracy(fragile, zeros, 0.1, attack="noise", batch=len(zeros), **QUIET)
    assert found.clean == 1 and found.accuracy == 0


def test_eriep_refuses_before_its_search():
    from robustnb.eriep import eriep

    searched = []
    recipe = type("Never", (), {"__getattr__": lambda self, name: searched.append(name) or 1})()
    for options, said in ((dict(reading="throughn"), "did you mean 'through_n'"), (dict(alpha=-1.0), "alpha")):
        with pytest.raises(ValueError, match=said): eriep(made(), digits, searching=recipe, **options, **QUIET)
    with pytest.raises(ValueError, match="has 4 outputs"): eriep(made(4), digits, searching=recipe, **QUIET)
    assert not searched


def test_a_folder_of_answers_serves_one_network(tmp_path):
    kept = dict(corruptions=["fog"], severities=[1], resamples=5, show=False, cache=tmp_path / "kept")
    first = evaluate(net, digits, **kept)
    assert (evaluate(net, digits, **kept).accuracy == first.accuracy).all()
    other = copy.deepcopy(net)
    with torch.no_grad(): other.head.bias += 1
    with pytest.raises(ValueError, match="answers of another network"): evaluate(other, digits, **kept)
    with pytest.raises(ValueError, match="answers to other images"): evaluate(net, digits.take(slice(0, 60)), **kept)
    evaluate(lambda x: net(x), digits, **kept)  # a function takes nobody's mark away
    with pytest.raises(ValueError, match="answers of another network"): evaluate(other, digits, **kept)
    assert (evaluate(nn.DataParallel(net), digits, **kept).accuracy == first.accuracy).all()  # a wrapper is no network
    kept["cache"] = tmp_path / "mended"
    with pytest.raises(ValueError, match="not finite"): evaluate(After(lambda z: z / 0), digits, **kept)
    evaluate(other, digits, **kept)  # nothing was answered before


def test_outputs_without_a_class_are_told():
    nine = digits.take(digits.y < 9)
    nine = ImageSet(nine.x, nine.y, tuple("012345678"), "nine")
    with pytest.warns(UserWarning, match="10 outputs and the images 9 classes"):
        evaluate(net, nine, ["fog"], [1], resamples=5, show=False)


def test_models_without_a_gradient_are_told_which_attack_needs_none():
    shut = After(lambda z: z.detach())
    for call in (lambda: short(shut), lambda: short(shut, attack="light"), lambda: fgsm_levels(shut, digits, (1.0,))):
        with pytest.raises(ValueError, match="no gradient towards the images.*'square' needs none"): call()
    assert short(shut, attack="square").accuracy == short(net, attack="square").accuracy


def test_arrays_and_functions_are_told_what_they_are_not(tmp_path):
    with pytest.raises(TypeError, match="must be tensors, got ndarray"):
        ImageSet(digits.x.numpy(), digits.y, digits.classes, "a")
    with pytest.raises(TypeError, match="got function"): fit(lambda x: net(x), digits)
    path = tmp_path / "c.pt"
    fit(made(), digits, None, Recipe(epochs=1), checkpoint=path, **QUIET)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with pytest.raises(ValueError, match="another (training|network)"):
        fit(wide, digits, None, Recipe(epochs=1), checkpoint=path, **QUIET)


def test_few_logits_are_no_evidence_of_a_softmax():
    "Two logits of one image sum to 1 within a thousandth once in a while: in 2,000 passes surely."
    two = Classifier({"drop": Dropout(0.3), "flat": nn.Flatten()}, nn.Linear(784, 2)).eval()
    with torch.no_grad(): two.head.weight.mul_(0.3), two.head.bias.fill_(0.5)

    assert mc_dropout(two, digits.x[:1], 2000).shape == (2000, 1, 2)
    check_values(torch.tensor([[0.5, 0.5]]))
    with pytest.raises(ValueError, match="probabilities"): check_values(torch.full((8, 2), 0.5))


def test_classes_that_are_ruled_out_are_answers():
    ruled = After(lambda z: z.masked_fill(torch.arange(10) == 9, -torch.inf))
    data = digits.take(digits.y < 9)
    plain = robust_accuracy(After(lambda z: z - 1e6 * (torch.arange(10) == 9)), data, 0.05, steps=2, **QUIET)
    assert robust_accuracy(ruled, data, 0.05, steps=2, **QUIET).accuracy == plain.accuracy
    table = evaluate(ruled, data, ["fog"], [1], resamples=5, show=False)
    assert (table.accuracy > 0.3).all() and table.confidence.notna().all()


def test_a_teacher_is_asked_about_images_as_the_student_sees_them():
    wide = Classifier({"flat": nn.Flatten()}, nn.Linear(32 * 32, 10)).eval()
    pad = lambda x, generator: F.pad(x, (2, 2, 2, 2))
    for objective in (Distillation(wide, 2.0), Anchored(lambda x, g: x, teacher=wide)):
        fit(copy.deepcopy(wide), digits, objective, Recipe(epochs=1, augment=pad), **QUIET)


def test_images_that_rounding_left_are_brought_back():
    data = ImageSet(digits.float() * 1.0005 - 1e-4, digits.y, digits.classes, "resized")
    assert data.x.min() == 0 and data.x.max() == 1


def test_calibration_errors_and_their_differences_lie_in_their_intervals():
    from robustnb.compare import Evaluated, paired_differences
    from robustnb.robustness import Answers, summarise, tabulate

    for seed in range(6):
        draw = torch.Generator().manual_seed(seed)
        sure = torch.rand(6, 800, generator=draw) * 0.9 + 0.1
        right = torch.rand(6, 800, generator=draw) < sure
        rows = [("clean", 0), *(("fog", s) for s in range(1, 6))]
        pair = [Answers(rows, right, c.half(), "cifar10-c") for c in (sure, (sure + 0.15).clamp(max=1))]
        table, means = tabulate(pair[0], resamples=200), summarise(pair[0], resamples=200).set_index("quantity")
        assert ((table.ece_low < table.ece) & (table.ece < table.ece_high)).all()
        for row in means[means.index.str.startswith("calibration")].itertuples(): assert row.low < row.value < row.high
        found = paired_differences(*(Evaluated(n, a, {}) for n, a in zip("ab", pair)), resamples=200)
        for row in found[found.kind == "calibration error"].itertuples(): assert row.low < row.difference < row.high


def test_tent_adapts_within_inference_mode_too():
    model = nn.Sequential(nn.BatchNorm2d(1), net)
    with torch.inference_mode(): within = tent(model, digits, batch=40)
    outside = tent(model, digits, batch=40)
    assert torch.equal(within[0].weight, outside[0].weight) and not torch.equal(within[0].weight, model[0].weight)


def test_weights_are_told_apart_whatever_their_layout():
    sparse, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.load_state_dict(sparse.state_dict())
    for model, value in ((sparse, 1.0), (other, 2.0)): model.register_buffer("mask", (value * torch.eye(2)).to_sparse())
    assert weights_hash(sparse) != weights_hash(other) == weights_hash(copy.deepcopy(other))
    assert weights_hash(nn.Flatten()) is None and weights_hash(lambda x: x) is None  # nothing to tell them by
