"""The names that design and README promise, and what checks outside the repository may call."""
import importlib
import inspect

import pytest

NAMES = {
    "data": "ImageSet load sample",
    "perturbations": "perturb gaussian_at_distance at_distance",
    "attacks": "ascend fgsm pgd raise_entropy fgsm_at_distance",
    "worst_case": "robust_accuracy standing apgd square autoattack margin",
    "adversarial": (
        "AdversarialTraining FreeAdversarialTraining Trades EnsembleAdversarial distill Distillation Softened "
        "Divided fine_tuning masking_checks gradient_alignment loss_surface"
    ),
    "training_sets": "imbalance mislabel add_perturbed orthogonal_array",
    "small_nets": "PlainNet cnn4 cnn8 cnn12 cnn16 vgg16_small",
    "repvgg": "RepVGG repvgg_a0 repvgg_a2 fuse",
    "models": "create",
    "training": "fit Recipe History Objective Loss CrossEntropy",
    "operations": "OPERATIONS operation Operation",
    "epm": "Policy FixedPolicy search SearchRecipe Critic gradient_penalty discretise",
    "contrastive": "info_nce supcon_loss unicl_loss SupCon UniCL linear_head",
    "dem_hec": "DemHEC distillation snapshot",
    "eriep": "ERIEP eriep final_loss reference_of synchronise hardened gradient_cosine",
    "papers.eriep.protocol": "EriepCell eriep_cells run_eriep_cell Depths depths",
    "papers.eriep.large": "LargeCell large_cells run_large_cell table4_net table4_figure",
    "torchvision_nets": "small_stem alexnet_layers VisionTransformer",
    "augment": (
        "resized_crop Augmentation Chain PadCrop Flip Rotate TrivialAugment AutoAugment PartNoise AugMix Prime "
        "jensen_shannon BatchAugment JSD adapt_batchnorm"
    ),
    "formats": "Pictures",
    "papers.dem_hec.pretraining": "PretrainCell pretrain_cells pretrained",
    "papers.dem_hec.protocol": (
        "DemHecCell dem_hec_cells setting_of run_dem_hec_cell run_setting ablation slower FURTHER further_cells "
        "setting_name further seeds"
    ),
    "benchmarks.dem_hec": "DemHECTiming dem_hec_timing_cells PlainDemHEC plain_training time_dem_hec",
    "papers.dem_hec.checks": "run_invariant_cell eq12",
    "papers.dem_hec.claims": "DemHecResults dem_hec_results dem_hec_verdicts",
    "papers.dem_hec.large": "LargeBase LargeCell large_cells run_large_cell large_net with_published missing",
    "papers.dem_hec.report": (
        "best shown pair_table compare_table method_ranking table3 table4 table6 subset_table shown_large "
        "clean_table ablation_results ablation_table effects"
    ),
    "entropy": "layer_entropy activation_entropy entropy_under_corruption universal",
    "papers.dem_hec.entropies": (
        "entropy_data gap rises gap_change separated rise_frame rise_table gap_table share_figure layer_figure "
        "rise_maps profile_figure likeness link links"
    ),
    "gradcam": (
        "grad_cam map_layers overlay picture_grid fig4_blur rank_correlation overlap cosine drift attention_drift"
    ),
    "metrics": "ece nll brier",
    "mixing": "Mixup CutMix",
    "anchored": "Anchored",
    "skip_nets": "SkipNet SkipBlock SqueezeExcite SKIP_NETS",
    "calibration": (
        "ece_interval ece_floor reliability_picture conformal_threshold conformal_sets "
        "set_coverage measures under_shift"
    ),
    "uncertainty": (
        "mc_dropout Ensemble LastLayerLaplace BayesLinear ELBO bayesian variational temperature_scale Tempered "
        "risk_coverage accuracy_at tune_precision log_evidence"
    ),
    "domain": (
        "dann_weight DANN adda mnist_m mnist_to_mnist_m mnist_to_digits digits_to_mnist clean_to_corrupted "
        "domain_pair tent two_ends gap_covered features proxy_a_distance feature_picture"
    ),
    "robustness": "evaluate measure",
    "sources": "BLOCK Source as_source open_source balanced_positions",
    "streaming": "Settings answer_blocks corrupt_unit unit_of Journal",
    "corrupted_sets": "write_set",
    "levels": "gaussian_levels fgsm_levels",
    "statistics": "spearman multiple_correlation bootstrap_ci holm strength",
    "claims": "verdicts",
    "lab.report": "statement evidence tally",
    "papers.dem_hec.errata": "gain_table",
    "papers.study.errata": "p_check",
    "lab.records": "Record Store promote",
    "lab.experiments": "run_cells",
    "papers.study.protocol": "StudyCell study_cells run_study_cell",
    "lab.site": "build serve",
    "cli": "main",
    "basics": "nearest atomic_write progress",
    "lab.registry": "Paper papers new_paper",
    "lab.verdicts": "evaluate_claim paper_table",
}


@pytest.mark.parametrize("module, name", [(m, n) for m, names in NAMES.items() for n in names.split()])
def test_name_is_there_and_documented(module, name):
    found = getattr(importlib.import_module(f"robustnb.{module}"), name)
    assert inspect.getdoc(found), f"robustnb.{module}.{name} has no docstring"


@pytest.mark.parametrize("module, name, arguments", [
    ("data", "load", ["name", "split"]),
    ("attacks", "fgsm", ["model", "x", "y", "eps"]),
    ("attacks", "pgd", ["model", "x", "y", "eps", "step", "steps", "norm", "random_start", "generator"]),
    ("perturbations", "perturb", ["x"]),
    ("training", "fit", ["model", "data", "objective", "recipe", "seed"]),
    ("eriep", "ERIEP", ["policy", "alpha", "sync_every", "reading"]),
    ("gradcam", "grad_cam", ["model", "x", "target", "layer", "size"]),
    ("statistics", "spearman", ["x", "y"]),
])
def test_arguments_come_in_the_promised_order(module, name, arguments):
    given = list(inspect.signature(getattr(importlib.import_module(f"robustnb.{module}"), name)).parameters)
    assert given[:len(arguments)] == arguments
