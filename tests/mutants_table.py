"""The faults that mutants.py plants in okdc: for each the place, the text that is replaced, and the tests to notice it.

A name is area/fault. `old` occurs once in its file: `test_mutants_table.py` checks that, and that the tests exist. The
tests are as few and as fast as can notice the fault: each mutant is a process of its own.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str  # below the repository's root
    old: str
    new: str
    tests: tuple[str, ...]  # test files, or test functions in them

    def planted(self, source: str) -> str:
        """The file's text with the fault in it."""
        return source.replace(self.old, self.new)


def _of(area: str, file: str, tests: str, *faults: tuple[str, str, str] | tuple[str, str, str, str]) -> list[Mutant]:
    """Mutants of one file: (name, old, new, test functions of the file `tests`, joined by spaces; none: all of it).

    `tests` may name several files; the functions are then of the first.
    """
    first, *others = tests.split()
    mutants = []
    for name, old, new, *functions in faults:
        named = [f"{first}::{function}" for function in functions[0].split()] if functions else [first]
        mutants.append(Mutant(f"{area}/{name}", file, old, new, (*named, *others)))
    return mutants


METHODS = [
    *_of(
        "methods",
        "okdc/methods/base.py",
        "tests/methods/test_base.py",
        (
            "kl-turned-round",
            "F.kl_div(student, teacher,",
            "F.kl_div(teacher, student,",
            "test_kl_equals_a_loop_over_images_and_classes",
        ),
        (
            "kl-without-t-squared",
            "log_target=True) * temperature**2",
            "log_target=True)",
            "test_kl_with_a_temperature_is_scaled_by_its_square",
        ),
        (
            "kl-divided-by-classes",
            'reduction="batchmean", log',
            'reduction="mean", log',
            "test_kl_is_summed_over_classes_and_averaged_over_the_batch",
        ),
        (
            "kl-teaches-the-teacher",
            "teacher_logits = teacher_logits.detach()",
            "pass",
            "test_kl_sends_its_teacher_no_gradient",
        ),
        (
            "kl-in-bfloat16",
            "F.log_softmax(student_logits.float() / temperature, 1)",
            "F.log_softmax(student_logits / temperature, 1)",
            "test_kl_of_bfloat16_logits_is_computed_in_float32",
        ),
        ("ramp-without-square", "max=1)) ** 2)", "max=1)))", "test_the_ramp_has_the_values_of_80_epochs_in_300"),
        (
            "ramp-without-end",
            "torch.clamp(progress / length, max=1)",
            "progress / length",
            "test_the_ramp_starts_at_e_to_the_minus_5_and_is_1_from_its_length_on",
        ),
        (
            "mixed-labels-exchanged",
            "batch.mix * first + (1 - batch.mix) * second",
            "batch.mix * second + (1 - batch.mix) * first",
            "test_cross_entropy_equals_loops_and_its_gradient_the_difference_quotient",
        ),
        (
            "mixed-weights-of-one-label",
            "+ (1 - batch.mix) * class_weights[batch.other_labels]",
            "+ (1 - batch.mix) * class_weights[batch.labels]",
            "test_cross_entropy_equals_loops_and_its_gradient_the_difference_quotient",
        ),
        (
            "smoothing-over-the-other-classes",
            "label_smoothing / classes if",
            "label_smoothing / (classes - 1) if",
            "test_targets_by_hand",
        ),
    ),
    *_of(
        "methods",
        "okdc/methods/base.py",
        "tests/methods/test_kd.py",
        (
            "teacher-in-training-mode",
            "            self.teacher.eval()\n",
            "            pass\n",
            "test_a_teacher_stays_what_it_was_through_training_steps",
        ),
        (
            "teacher-learns",
            "else teacher.eval().requires_grad_(False)",
            "else teacher.eval()",
            "test_both_terms_reach_the_whole_student_and_never_the_teacher "
            "test_a_teacher_stays_what_it_was_through_training_steps",
        ),
    ),
    *_of(
        "methods",
        "okdc/methods/base.py",
        "tests/methods/test_ffl.py",
        (
            "mutual-ensemble-is-a-sum",
            "z_a = torch.stack(list(z)).mean(0)",
            "z_a = torch.stack(list(z)).sum(0)",
            "test_every_term_equals_a_slow_transcription",
        ),
        (
            "mutual-fused-teaches-ensemble",
            "w * kl(z_a, z_f, temperature)",
            "w * kl(z_f, z_a, temperature)",
            "test_every_term_equals_a_slow_transcription",
        ),
        (
            "mutual-ensemble-teaches-students",
            "w * kl(z_f, z_k, temperature)",
            "w * kl(z_a, z_k, temperature)",
            "test_every_term_equals_a_slow_transcription",
        ),
        (
            "mutual-students-without-ramp",
            "w * kl(z_f, z_k, temperature)",
            "kl(z_f, z_k, temperature)",
            "test_every_term_equals_a_slow_transcription",
        ),
        (
            "mutual-fused-learns-no-labels",
            'losses["ce_fused"] = method.cross_entropy(z_f, batch)',
            'losses["ce_fused"] = method.cross_entropy(z_a, batch)',
            "test_every_term_equals_a_slow_transcription",
        ),
    ),
    *_of(
        "methods",
        "okdc/methods/baseline.py",
        "tests/methods/test_baseline.py",
        (
            "baseline-trains-all",
            "single = True",
            "single = False",
            "test_it_trains_the_first_student_of_a_recipe_alone",
        ),
    ),
    *_of(
        "methods",
        "okdc/methods/kd.py",
        "tests/methods/test_kd.py",
        ("kd-without-alpha", "self.config.alpha * kl(", "kl(", "test_every_term_equals_a_slow_transcription"),
        ("kd-student-teaches", "kl(z_t, z, self", "kl(z, z_t, self", "test_every_term_equals_a_slow_transcription"),
    ),
    *_of(
        "methods",
        "okdc/methods/dml.py",
        "tests/methods/test_dml.py",
        (
            "dml-peers-summed",
            "torch.stack(peers).mean()",
            "torch.stack(peers).sum()",
            "test_every_term_equals_a_slow_transcription_with_no_ramp_up",
        ),
        (
            "dml-teaches-itself",
            "for peer, z_peer in enumerate(z) if peer != k",
            "for peer, z_peer in enumerate(z)",
            "test_every_term_equals_a_slow_transcription_with_no_ramp_up",
        ),
        ("dml-softened", "kl(z_peer, z_k, 1.0)", "kl(z_peer, z_k, 3.0)", "test_two_students_in_numbers"),
    ),
    *_of(
        "methods",
        "okdc/methods/one.py",
        "tests/methods/test_one.py",
        (
            "one-branches-teach-ensemble",
            "w * kl(z_e, z_i, T)",
            "w * kl(z_i, z_e, T)",
            "test_every_term_equals_a_slow_transcription",
        ),
        (
            "one-gate-over-images",
            ".float().softmax(1)",
            ".float().softmax(0)",
            "test_the_gates_weights_are_positive_and_sum_to_one",
        ),
        (
            "one-gate-reads-the-stem",
            "self.trunk = self.cohort.shared - 1",
            "self.trunk = 0",
            "test_the_gate_reads_the_last_map_that_the_branches_share",
        ),
    ),
    *_of(
        "methods",
        "okdc/methods/ffl.py",
        "tests/methods/test_ffl.py",
        (
            "ffl-detaches-always",
            "f.detach() if self.config.detach_features else f for f in last",
            "f.detach() for f in last",
            "test_the_fused_terms_train_the_students_features_unless_these_are_detached",
        ),
    ),
    *_of(
        "methods",
        "okdc/methods/mfef.py",
        "tests/methods/test_mfef.py",
        (
            "mfef-students-teach-ensemble",
            "w * kl(z_a, z_k, T)",
            "w * kl(z_k, z_a, T)",
            "test_case_c_is_distillation_of_the_ensembles_logits",
        ),
        (
            "mfef-attention-first",
            "path.append(DualAttention",
            "path.insert(0, DualAttention",
            "test_the_fused_classifier_equals_a_slow_transcription",
        ),
        (
            "mfef-one-path-for-all",
            "[path(f) for path, f in zip(self.paths, last, strict=True)]",
            "[self.paths[0](f) for f in last]",
            "test_the_fused_classifier_equals_a_slow_transcription",
        ),
    ),
    *_of(
        "methods",
        "okdc/methods/fefr.py",
        "tests/methods/test_fefr.py",
        (
            "fefr-bridge-skipped",
            "            f23 = f2 + f3\n",
            "            f23 = f1 + f3\n",
            "test_a_path_is_matching_two_sums_and_their_mean test_both_sums_are_joined_in_the_order_of_their_depth",
        ),
        (
            "fefr-sums-in-other-order",
            "torch.cat([f12, f23], 1)",
            "torch.cat([f23, f12], 1)",
            "test_both_sums_are_joined_in_the_order_of_their_depth",
        ),
        (
            "fefr-skip-sums",
            "return (first + second) / 2",
            "return first + second",
            "test_skip_of_two_joined_maps_is_their_mean",
        ),
        (
            "fefr-loo-divisor",
            "(total - g_i) / (groups - 1)",
            "(total - g_i) / groups",
            "test_reconstruction_equals_loops_over_the_groups",
        ),
        (
            "fefr-cyclic-jumps",
            "(i, (i + 1) % groups)",
            "(i, (i + 2) % groups)",
            "test_reconstruction_equals_loops_over_the_groups",
        ),
        (
            "fefr-cross-is-skip",
            "(i, groups - 1 - i)",
            "(i, groups // 2 + i)",
            "test_reconstruction_equals_loops_over_the_groups",
        ),
        (
            "fefr-raw-taps-as-they-are",
            "target, student.raw[i])",
            "target, False)",
            "test_a_raw_tap_is_normalised_first_and_another_is_not",
        ),
        (
            "fefr-detaches-always",
            "maps[i].detach() if self.config.detach_features else maps[i]",
            "maps[i].detach()",
            "test_the_fused_terms_reach_the_scaffolding_and_the_students_features_but_no_students_head",
        ),
    ),
    *_of(
        "methods",
        "okdc/methods/dualnet.py",
        "tests/methods/test_dualnet.py",
        (
            "dualnet-mean-of-features",
            "self.fc(h.sum(0))",
            "self.fc(h.mean(0))",
            "test_every_term_equals_a_slow_transcription_and_none_is_a_divergence",
        ),
    ),
    *_of(
        "methods",
        "okdc/methods/okddip.py",
        "tests/methods/test_okddip.py",
        (
            "okddip-peers-detached",
            "kl(t[:, a], z_a, T, detach=False)",
            "kl(t[:, a], z_a, T)",
            "test_targets_are_not_detached_so_that_the_projections_and_the_other_peers_learn",
        ),
        (
            "okddip-attention-over-queries",
            ".float().softmax(2)",
            ".float().softmax(1)",
            "test_every_term_equals_a_slow_transcription",
        ),
        (
            "okddip-leader-teaches-itself",
            "z_mean = torch.stack(z).mean(0)",
            "z_mean = torch.stack([*z, z_leader]).mean(0)",
            "test_every_term_equals_a_slow_transcription",
        ),
        (
            "okddip-leader-first",
            "self.leader = len(self.cohort.students) - 1",
            "self.leader = 0",
            "test_the_leader_is_the_last_student_and_the_one_to_keep",
        ),
    ),
    *_of(
        "methods",
        "okdc/methods/kdcl.py",
        "tests/methods/test_kdcl.py",
        (
            "kdcl-worst-student-teaches",
            "errors.argmin(0)",
            "errors.argmax(0)",
            "test_the_naive_teacher_is_for_each_image_the_student_with_the_least_cross_entropy",
        ),
        (
            "kdcl-largest-logit",
            "(z - z.gather(2, true_class)).min(0)",
            "(z - z.gather(2, true_class)).max(0)",
            "test_minlogit_is_the_least_of_each_class_counted_from_the_true_ones",
        ),
        (
            "kdcl-two-weights-exchanged",
            "torch.stack([alpha, 1 - alpha])",
            "torch.stack([1 - alpha, alpha])",
            "test_the_linear_teacher_is_no_worse_than_any_student_nor_their_mean",
        ),
        (
            "kdcl-uphill",
            "log_alpha = log_alpha - step",
            "log_alpha = log_alpha + step",
            "test_the_linear_teacher_is_no_worse_than_any_student_nor_their_mean",
        ),
        (
            "kdcl-without-weight",
            "self.config.weight * kl(",
            "kl(",
            "test_every_term_equals_a_slow_transcription_with_no_ramp_up",
        ),
    ),
]

BLOCKS = [
    *_of(
        "blocks",
        "okdc/blocks.py",
        "tests/test_blocks.py",
        (
            "patches-padded-in-front",
            "(0, ratio[1] * width - w, 0, ratio[0] * height - h)",
            "(ratio[1] * width - w, 0, ratio[0] * height - h, 0)",
            "test_patch_conv_is_one_weighted_sum_for_each_patch",
        ),
        (
            "raw-map-not-rectified",
            "[nn.BatchNorm2d(source[0]), nn.ReLU()] if raw",
            "[nn.BatchNorm2d(source[0])] if raw",
            "test_a_raw_map_is_normalised_and_rectified_before_it_is_matched",
        ),
        (
            "channel-attention-without-maximum",
            "self.mlp(x.amax((2, 3)))",
            "self.mlp(x.mean((2, 3)))",
            "test_channel_attention_is_mfef_equations_5_and_6",
        ),
        (
            "spatial-attention-exchanged",
            "[x.mean(1, keepdim=True), x.amax(1, keepdim=True)]",
            "[x.amax(1, keepdim=True), x.mean(1, keepdim=True)]",
            "test_spatial_attention_is_mfef_equations_7_and_8",
        ),
        (
            "places-before-channels",
            "(ChannelAttention(channels, reduction), SpatialAttention(spatial_kernel))",
            "(SpatialAttention(spatial_kernel), ChannelAttention(channels, reduction))",
            "test_dual_attention_is_channels_first_then_places",
        ),
        (
            "fusion-as-wide-as-the-widest",
            "min(s[0] for s in sizes)",
            "max(s[0] for s in sizes)",
            "test_overall_fusion_brings_maps_of_several_sizes_to_the_smallest",
        ),
        (
            "fusion-in-bfloat16",
            "return logits.float()",
            "return logits",
            "test_overall_fusion_gives_float32_under_autocast",
        ),
    ),
    *_of(
        "blocks",
        "okdc/blocks.py",
        "tests/deploy/test_lowering.py",
        (
            "averages-of-other-pixels",
            "-(-(i + 1) * size // target)",
            "(i + 1) * size // target",
            "test_matrices_pool_as_adaptive_average_pooling_does",
        ),
    ),
    *_of(
        "blocks",
        "okdc/blocks.py",
        "tests/test_hierarchical_split.py",
        (
            "split-joined-in-front",
            "torch.cat([group, before], 1)",
            "torch.cat([before, group], 1)",
            "test_it_equals_a_slow_transcription",
        ),
        (
            "split-first-group-left-out",
            "before = inside // 2 if i < groups - 1 else 0",
            "before = inside // 2 if 1 < i < groups - 1 else 0",
            "test_it_equals_a_slow_transcription",
        ),
    ),
]

COHORT = [
    *_of(
        "cohort",
        "okdc/cohort.py",
        "tests/test_cohort.py",
        (
            "shares-one-stage-less",
            '{"low": len(first.stages) - 1,',
            '{"low": len(first.stages) - 2,',
            "test_parameters_are_one_trunk_and_a_branch_for_each_student",
        ),
        (
            "stem1-is-the-stem",
            '"stem1": min(2,',
            '"stem1": min(1,',
            "test_parameters_are_one_trunk_and_a_branch_for_each_student",
        ),
        (
            "trunk-runs-for-each",
            "            y, own = x, list(trunk)\n            for stage in self.backbone(k).stages[self.shared :]:\n",
            "            y, own = images, list[Tensor]()\n            for stage in self.backbone(k).stages:\n",
            "test_a_shared_stage_runs_once_and_an_own_one_once_a_student",
        ),
        ("strides-not-compared", "return student.channels, student.strides, [", "return student.channels, ["),
        ("channels-not-compared", "return student.channels, student.strides, [", "return student.strides, ["),
        (
            "layers-not-compared",
            "[(name, tensor.shape) for name, tensor in tensors]",
            "[]",
            "test_students_of_two_depths_cannot_share",
        ),
        ("sizes-not-compared", "[(name, tensor.shape) for name, tensor in tensors]", "[name for name, _ in tensors]"),
        (
            "probe-moves-statistics",
            "self.eval()  # a training pass would move the batch statistics",
            "pass",
            "test_probe_measures_every_map_and_leaves_no_trace",
        ),
        ("probe-leaves-eval", "self.train(training)", "pass", "test_probe_measures_every_map_and_leaves_no_trace"),
        (
            "logits-in-bfloat16",
            "head(own[-1]).float() for",
            "head(own[-1]) for",
            "test_logits_are_float32_under_autocast",
        ),
        ("one-student-shares", "count if len(students) > 1 else 0", "count"),
    ),
    *_of(
        "cohort",
        "okdc/cohort.py",
        "tests/deploy/test_count.py",
        ("macs-doubled", "return total // 2", "return total", "test_macs_are_the_published_ones"),
    ),
    *_of(
        "cohort",
        "okdc/cohort.py",
        "tests/profiling/test_profile.py",
        (
            "shared-parameters-counted-twice",
            "sum(p.numel() for p in module.parameters())",
            "sum(p.numel() for _, p in module.named_parameters(remove_duplicate=False))",
            "test_a_recipe_is_counted_without_its_images test_two_recipes_side_by_side_keep_their_own_numbers",
        ),
    ),
]

LOOP = [
    *_of(
        "loop",
        "okdc/training/loop.py",
        "tests/training/test_loop.py",
        (
            "evaluates-while-training",
            "                self.method.train()\n",
            "                pass\n",
            "test_every_module_is_in_training_mode_at_every_step",
        ),
        (
            "progress-by-epochs",
            "self.train_step(Batch(images, labels), done / whole)",
            "self.train_step(Batch(images, labels), position.epoch / self.epochs)",
            "test_progress_is_the_fraction_of_steps_done_and_both_groups_follow_the_schedule",
        ),
        (
            "bad-loss-goes-on",
            "stop_if_bad(trained, self.run, self.steps, ranks)",
            "pass",
            "test_a_loss_that_is_not_finite_fails_the_run_by_step_and_term_and_keeps_what_was_good",
        ),
        (
            "bad-loss-is-saved",
            "stop_if_bad(totals.read(self.ranks), self.run, self.steps, self.ranks)",
            "pass",
            "test_a_signal_after_a_loss_that_is_not_finite_saves_no_ruined_state",
        ),
        (
            "bad-weights-are-saved",
            "if not torch.stack([p.isfinite().all() for p in self.train_step.parameters]).all():",
            "if False:",
            "test_weights_ruined_by_an_epochs_last_step_are_noticed_before_they_are_saved",
        ),
        ("bad-validation-goes-on", "if validated.bad:", "if False:"),
        (
            "validates-on-the-test-split",
            "self.dataset, self.dataset.val, self.normalise",
            "self.dataset, self.dataset.test, self.normalise",
            "test_the_test_split_has_no_say_in_weights_log_or_choice test_the_kept_weights_score_what_was_recorded",
        ),
        (
            "rate-of-the-next-step",
            "last_step = position.epoch * self.steps - 1",
            "last_step = position.epoch * self.steps",
            "test_three_hundred_epochs_are_three_hundred_rows_and_the_rate_drops_at_150_and_225",
        ),
    ),
    *_of(
        "loop",
        "okdc/training/result.py",
        "tests/training/test_loop.py",
        (
            "bad-heads-are-judged",
            "if heads.bad:",
            "if False:",
            "test_weights_ruined_by_the_last_step_fail_where_nothing_validates",
        ),
    ),
    *_of(
        "loop",
        "okdc/training/step.py",
        "tests/training/test_loop.py",
        (
            "no-clipping",
            "if self.recipe.clip:",
            "if False:",
            "test_clipping_bounds_the_gradient_of_everything_that_learns",
        ),
        (
            "rate-of-students-alone",
            "for group in self.optimizer.param_groups:\n            group",
            "for group in self.optimizer.param_groups[:1]:\n            group",
            "test_progress_is_the_fraction_of_steps_done_and_both_groups_follow_the_schedule",
        ),
        (
            "first-loss-alone",
            "torch.stack(list(step.losses.values())).sum()",
            "next(iter(step.losses.values()))",
            "test_training_learns",
        ),
    ),
    *_of(
        "loop",
        "okdc/training/step.py",
        "tests/training/test_step.py",
        ("gradients-add-up", "self.optimizer.zero_grad(set_to_none=True)", "pass"),
    ),
    *_of(
        "loop",
        "okdc/training/optim.py",
        "tests/training/test_optim.py",
        (
            "scaffolding-decays-as-students",
            '"weight_decay": optim.aux_weight_decay',
            '"weight_decay": optim.weight_decay',
            "test_students_and_scaffolding_have_a_group_each_with_their_own_decay",
        ),
        ("without-nesterov", "nesterov=True", "nesterov=False", "test_a_step_is_nesterovs_with_decay_by_hand"),
        (
            "milestone-a-step-late",
            "progress >= milestone",
            "progress > milestone",
            "test_a_milestone_falls_on_its_step_in_spite_of_rounding",
        ),
        (
            "cosine-ends-at-half",
            "math.cos(math.pi * progress)) / 2",
            "math.cos(math.pi * progress / 2)) / 2",
            "test_the_cosine_schedule_goes_from_the_rate_to_almost_0",
        ),
        (
            "other-strides-pass",
            "assert _strides(tensor) == _strides(p)",
            "assert len(_strides(tensor)) == len(_strides(p))",
            "test_a_gradient_that_lies_otherwise_than_its_weight_is_noticed",
        ),
    ),
    *_of(
        "loop",
        "okdc/training/metrics.py",
        "tests/training/test_metrics.py tests/test_distributed.py",
        ("last-bad-step", "(self.bad[0] < 0) & bad_terms.any()", "bad_terms.any()"),
        ("last-bad-term", "bad_terms.int().argmax()]", "len(bad_terms) - 1 - bad_terms.int().flip(0).argmax()]"),
        (
            "last-bad-step-of-processes",
            "0 <= int(part.bad[0]) < int(whole.bad[0])",
            "int(part.bad[0]) > int(whole.bad[0])",
        ),
    ),
    *_of(
        "loop",
        "okdc/training/metrics.py",
        "tests/training/test_metrics.py",
        (
            "evaluation-in-training-mode",
            "method.eval()",
            "pass",
            "test_evaluation_moves_no_batch_statistics_of_anything",
        ),
        (
            "evaluation-before-the-ramp",
            "done = torch.ones((), device=device)",
            "done = torch.zeros((), device=device)",
            "test_evaluation_weighs_distillation_as_at_the_end",
        ),
        (
            "accuracy-over-steps",
            "100 * total / images",
            "100 * total / steps",
            "test_losses_are_means_over_steps_and_accuracies_over_images",
        ),
    ),
    *_of(
        "loop",
        "okdc/training/device.py",
        "tests/training/test_device.py",
        ("sixteen-pixels-are-tiny", "if image_size < 16:", "if image_size <= 16:"),
        ("twelve-pixels-are-large", "if image_size < 16:", "if image_size < 9:"),
    ),
]

SELECTION = [
    *_of(
        "selection",
        "okdc/training/selection.py",
        "tests/training/test_loop.py tests/methods/test_okddip.py",
        (
            "smallest-without-leader",
            "(count_params(cohort.backbone(k)), k != job.method.leader)",
            "count_params(cohort.backbone(k))",
            "test_smallest_keeps_the_student_of_fewest_parameters",
        ),
        (
            "smallest-is-the-leader",
            "(count_params(cohort.backbone(k)), k != job.method.leader)",
            "(k != job.method.leader, count_params(cohort.backbone(k)))",
            "test_smallest_keeps_the_student_of_fewest_parameters",
        ),
        (
            "leader-is-no-candidate",
            "list(range(count)) if job.method.leader is None else [job.method.leader]",
            "list(range(count))",
            "test_smallest_keeps_the_student_of_fewest_parameters",
        ),
    ),
    *_of(
        "selection",
        "okdc/training/selection.py",
        "tests/training/test_loop.py",
        (
            "smallest-is-largest",
            "return [min(range(count)",
            "return [max(range(count)",
            "test_smallest_keeps_the_student_of_fewest_parameters",
        ),
        (
            "first-of-equal-epochs",
            'accuracy < before[k]["val_top1_pct"]',
            'accuracy <= before[k]["val_top1_pct"]',
            "test_best_keeps_student_and_epoch_by_validation test_every_student_is_there_at_its_own_best_epoch",
        ),
        (
            "worst-epoch",
            'accuracy < before[k]["val_top1_pct"]',
            'accuracy > before[k]["val_top1_pct"]',
            "test_best_keeps_student_and_epoch_by_validation",
        ),
        (
            "last-of-equal-students",
            'r["epoch"], -r["student"])',
            'r["epoch"], r["student"])',
            "test_the_kept_student_follows_from_the_best_epochs_of_all test_best_keeps_student_and_epoch_by_validation",
        ),
        (
            "weights-that-train-on",
            ".detach().cpu().contiguous().clone()",
            ".detach().cpu().contiguous()",
            "test_the_kept_weights_score_what_was_recorded",
        ),
    ),
]

RESUME = [
    *_of(
        "checkpoint",
        "okdc/training/checkpoint.py",
        "tests/training/test_checkpoint.py",
        (
            "no-previous",
            "buffer.getvalue(), previous=run.previous_checkpoint)",
            "buffer.getvalue())",
            "test_what_was_saved_is_loaded_and_the_one_before_is_kept",
        ),
        (
            "another-format-is-read",
            'if state["version"] != VERSION:',
            'if state["version"] > VERSION:',
            "test_another_format_is_named_and_not_taken_for_damage",
        ),
        (
            "good-one-not-put-back",
            "path.replace(run.checkpoint)",
            "pass",
            "test_one_that_was_fallen_back_to_is_not_lost_at_the_next_save",
        ),
        ("runs-code", "weights_only=True", "weights_only=False", "test_a_checkpoint_runs_no_code"),
    ),
    *_of(
        "checkpoint",
        "okdc/training/step.py",
        "tests/training/test_step.py",
        (
            "optimiser-starts-anew",
            'self.optimizer.load_state_dict(state["optimizer"])',
            "pass",
            "test_a_loaded_step_goes_on_as_the_one_that_was_saved",
        ),
    ),
    *_of(
        "checkpoint",
        "okdc/runs/files.py",
        "tests/runs/test_run.py tests/training/test_loop.py::test_a_checkpoint_that_cannot_be_moved_into_place_leaves_one_to_continue_from",
        (
            "not-on-disk",
            "os.fsync(stream.fileno())",
            "pass",
            "test_a_write_is_on_disk_before_it_takes_the_place_of_the_old_one",
        ),
        (
            "old-one-not-put-back",
            "                    previous.replace(path)\n",
            "",
            "test_a_write_that_fails_leaves_what_was_there_and_nothing_else",
        ),
        (
            "leaves-its-draft",
            "aside.unlink(missing_ok=True)",
            "pass",
            "test_a_write_that_fails_leaves_what_was_there_and_nothing_else",
        ),
    ),
    *_of(
        "resume",
        "okdc/training/loop.py",
        "tests/training/test_resume.py",
        (
            "epoch-from-its-start",
            "self.batches.epoch(position.epoch, position.step)",
            "self.batches.epoch(position.epoch)",
            "test_a_run_stopped_at_any_moment_continues_to_the_bit",
        ),
        (
            "counts-forgotten",
            "position.totals or Totals(",
            "Totals(",
            "test_a_run_stopped_at_any_moment_continues_to_the_bit",
        ),
        (
            "state-not-loaded",
            "self.train_step.load(state)",
            "pass",
            "test_a_run_stopped_at_any_moment_continues_to_the_bit",
        ),
        (
            "seconds-of-the-last-start",
            "self.position.seconds += now",
            "self.position.seconds = now",
            "test_seconds_add_up_over_starts",
        ),
    ),
    *_of(
        "resume",
        "okdc/runs/run.py",
        "tests/runs/test_run.py",
        (
            "log-not-cut",
            "in self.rows()[:count]]",
            "in self.rows()]",
            "test_the_log_is_cut_to_what_a_checkpoint_has_counted",
        ),
    ),
    *_of(
        "resume",
        "okdc/assembly/reopen.py",
        "tests/assembly/test_job.py",
        (
            "other-images",
            "if dataset.fingerprint != info.data_sha256:",
            "if False:",
            "test_images_that_changed_since_a_run_was_started_are_noticed",
        ),
    ),
]

DATA = [
    *_of(
        "data",
        "okdc/data/augmentation.py",
        "tests/data/test_batches.py",
        (
            "flips-a-tenth",
            'generator=generator(seed, "epoch", epoch, "flip")) < 0.5',
            'generator=generator(seed, "epoch", epoch, "flip")) < 0.4',
            "test_shifts_are_uniform_and_independent_and_half_of_the_images_are_mirrored",
        ),
        (
            "last-corner-never-drawn",
            "top=torch.randint(2 * self.padding + 1,",
            "top=torch.randint(2 * self.padding,",
            "test_shifts_are_uniform_and_independent_and_half_of_the_images_are_mirrored",
        ),
        (
            "no-mirroring-on-cpu",
            "out[i, :, ::-1] if flip else out[i]",
            "out[i]",
            "test_crops_by_slices_and_by_gather_are_the_same_pixels",
        ),
        (
            "no-mirroring-on-gpu",
            "width - 1 - across, across",
            "across, across",
            "test_crops_by_slices_and_by_gather_are_the_same_pixels",
        ),
        (
            "same-order-every-epoch",
            'generator(seed, "epoch", epoch, "order")',
            'generator(seed, "order")',
            "test_each_draw_is_another_one_in_another_epoch_and_with_another_seed",
        ),
        (
            "same-order-for-every-seed",
            'generator(seed, "epoch", epoch, "order")',
            'generator(0, "epoch", epoch, "order")',
            "test_each_draw_is_another_one_in_another_epoch_and_with_another_seed",
        ),
        (
            "shifts-and-flips-of-one-stream",
            'corner = generator(seed, "epoch", epoch, "crop")',
            'corner = generator(seed, "epoch", epoch, "order")',
            "test_order_shift_and_flip_come_from_streams_of_their_own",
        ),
        (
            "flip-cannot-be-turned-off",
            "flip=mirrored if self.flip else torch.zeros(n, dtype=torch.bool)",
            "flip=mirrored",
            "test_no_flip_means_none",
        ),
    ),
    *_of(
        "data",
        "okdc/data/augmentation.py",
        "tests/data/test_streaming.py",
        ("files-cropped-less", "SCALE, RATIO = [0.08, 1.0]", "SCALE, RATIO = [0.2, 1.0]"),
        ("files-flipped-always", "bool(torch.rand(1) < 0.5) and self.flip", "bool(torch.rand(1) < 0.5)"),
        ("files-of-one-stream", '"epoch", epoch, "image", row)', '"epoch", epoch, "image")'),
    ),
    *_of(
        "data",
        "okdc/data/batches.py",
        "tests/data/test_batches.py",
        (
            "divided-by-256",
            "rows.div_(255)",
            "rows.div_(256)",
            "test_normalise_is_the_formula_in_the_memory_format_asked_for",
        ),
        (
            "starts-again",
            "for step in range(start, self.steps):",
            "for step in range(self.steps):",
            "test_an_epoch_continues_from_any_step_as_it_would_have",
        ),
        (
            "evaluates-whole-batches-only",
            "rows.split(batch_size)[ranks.rank :: ranks.count]",
            "rows[: len(rows) // batch_size * batch_size or 1].split(batch_size)[ranks.rank :: ranks.count]",
            "test_evaluation_covers_all_rows_in_order_with_a_partial_last_batch",
        ),
        (
            "processes-see-the-same-images",
            "start = step * batch_size + ranks.rank * part",
            "start = step * batch_size",
        ),
    ),
    *_of(
        "data",
        "okdc/data/datasets.py",
        "tests/data/test_datasets.py",
        (
            "remainders-the-wrong-way",
            "sign * (exact[c] - take[c])",
            "sign * (take[c] - exact[c])",
            "test_a_stratified_subset_has_its_share_of_every_class",
        ),
        (
            "a-class-may-be-missing",
            "[min(1, n) if everyone else 0 for n in sizes]",
            "[0 for n in sizes]",
            "test_no_class_is_emptied_by_a_split_nor_missing_in_a_subset",
        ),
        (
            "a-split-may-empty-a-class",
            "[max(n - 1, 0) for n in sizes]",
            "sizes",
            "test_no_class_is_emptied_by_a_split_nor_missing_in_a_subset",
        ),
        (
            "validation-drawn-by-the-seed",
            'train, count, SPLIT_SEED, "val")',
            'train, count, seed, "val")',
            "test_digits_of_other_seeds_differ_only_in_the_training_subset",
        ),
        (
            "subset-drawn-once",
            'train, train_images, seed, "train_images"',
            'train, train_images, SPLIT_SEED, "train_images"',
            "test_digits_of_other_seeds_differ_only_in_the_training_subset",
        ),
        ("validation-trains", "        train = _without(train, val)\n", "", "test_the_splits_never_share_an_image"),
        (
            "test-trains",
            'splits["train"] = _without(everything, splits["test"])',
            'splits["train"] = everything',
            "test_one_folder_of_classes_gives_a_fifth_of_each_to_a_fixed_test_split",
        ),
        (
            "not-stratified",
            "rows[classes == c] for c in range(int(labels.max()) + 1)",
            "rows",
            "test_a_stratified_subset_has_its_share_of_every_class",
        ),
        (
            "moments-of-all-images",
            "for rows in self.train.split(",
            "for rows in torch.arange(len(self.labels)).split(",
            "test_the_moments_are_numpys_over_the_training_images_alone",
        ),
    ),
    *_of(
        "data",
        "okdc/data/images.py",
        "tests/data/test_images.py",
        (
            "cut-from-the-corner",
            "left, top = (width - size) // 2, (height - size) // 2",
            "left, top = 0, 0",
            "test_an_image_whose_shorter_side_fits_is_only_cut",
        ),
        (
            "sixteen-bits-by-256",
            "np.rint(values / 257)",
            "np.rint(values / 256)",
            "test_sixteen_bit_grey_is_scaled_and_not_clipped",
        ),
        (
            "lying-images",
            "image = ImageOps.exif_transpose(image)",
            "pass",
            "test_an_image_stands_upright_by_its_exif_tag",
        ),
        (
            "longer-side",
            "shorter / min(width, height)",
            "shorter / max(width, height)",
            "test_any_size_is_resized_by_the_shorter_side_and_cut_in_the_centre",
        ),
        ("white-behind-transparency", "(0, 0, 0, 255)", "(255, 255, 255, 255)", "test_transparency_is_laid_over_black"),
    ),
    *_of(
        "data",
        "okdc/data/source.py",
        "tests/data/test_datasets.py",
        (
            "fingerprint-without-labels",
            "labels.tolist(), bounds]",
            "bounds]",
            "test_a_file_that_changes_its_class_or_its_split_is_other_data",
        ),
        (
            "fingerprint-without-splits",
            "labels.tolist(), bounds]",
            "labels.tolist()]",
            "test_a_file_that_changes_its_class_or_its_split_is_other_data",
        ),
    ),
    *_of(
        "data",
        "okdc/seeds.py",
        "tests/test_seeds.py",
        ("purposes-run-together", 'text = "/".join(', 'text = "".join('),
        ("seed-left-out", "for part in (seed, *purpose))", "for part in purpose)"),
    ),
    *_of(
        "data",
        "okdc/assembly/job.py",
        "tests/assembly/test_job.py",
        (
            "students-of-one-stream",
            '"init", "student", k)',
            '"init", "student")',
            "test_a_student_starts_from_the_same_weights_whatever_its_peers_and_its_method_are",
        ),
    ),
]

PARITY = [
    *_of(
        "parity",
        "okdc/deploy/parity.py",
        "tests/deploy/test_parity.py",
        ("factor-times-ten", "FACTOR = 16", "FACTOR = 160"),
        ("factor-ignores-noise", "max(FACTOR * self.noise, FLOOR)", "FLOOR"),
        ("images-not-held", '*_beyond("logits of images", differences["images"], bound),', ""),
        ("float64-not-held", '*_beyond("logits of images float64", differences["images_float64"], bound),', ""),
        (
            "extremes-not-held",
            '*_beyond("logits of extreme images", differences["extreme_images"], extremes.allowed),',
            "",
        ),
        (
            "extremes-are-black",
            "return np.stack(images).astype(np.uint8)",
            "return np.zeros_like(np.stack(images), np.uint8)",
        ),
        ("extremes-without-colours", "images += [np.broadcast_to(255", "images = images + [0 * np.broadcast_to(255"),
        (
            "extremes-allowed-as-images-times-ten",
            'differences["extreme_images"], extremes.allowed)',
            'differences["extreme_images"], 10 * extremes.allowed)',
        ),
        ("probabilities-not-held", '*_beyond("probabilities against the softmax of the logits", softmax, FLOOR),', ""),
        ("not-finite-passes", "        *_not_finite(logits, extremes),\n", ""),
        ("flips-ignored", "if unexplained or len(flips) > max(1, MOST_FLIPS * len(images)):", "if False:"),
        (
            "unexplained-flips-ignored",
            "if unexplained or len(flips) > max(1, MOST_FLIPS * len(images)):",
            "if len(flips) > max(1, MOST_FLIPS * len(images)):",
        ),
        ("any-number-of-flips", "if unexplained or len(flips) > max(1, MOST_FLIPS * len(images)):", "if unexplained:"),
        ("any-margin-is-explained", "explained = 2 * min(difference, 1e-2)", "explained = np.inf"),
        ("gross-difference-explains", "explained = 2 * min(difference, 1e-2)", "explained = 2 * difference"),
        ("no-flip-is-explained", "explained = 2 * min(difference, 1e-2)", "explained = 0"),
        ("recorded-accuracy-not-held", "if abs(torch_pct - recorded_pct) > SAME_PCT:", "if False:"),
        ("batches-not-held", 'failures += _beyond(name.replace("_", " "), value, bound)', "pass"),
        ("reference-not-held", 'failures += _beyond("onnx.reference against onnxruntime", second, bound)', "pass"),
        (
            "reference-of-nothing",
            "second = largest(_reference(path, images[:4]), logits.onnx[:4])",
            "second = largest(_reference(path, images[:0]), logits.onnx[:0])",
        ),
        (
            "noise-of-the-first-image",
            "np.linspace(0, len(images) - 1, min(FLOAT64, len(images))).astype(int)",
            "np.zeros(1, int)",
        ),
        ("not-a-number-is-small", "[] if value <= allowed else", "[] if not value > allowed else"),
    ),
    *_of(
        "parity",
        "okdc/bundle/checks.py",
        "tests/deploy/test_parity.py tests/bundle/test_checks.py",
        (
            "one-thread",
            'differences["2_threads"] = largest(Session(model, threads=2)(images, BATCH)[0], single)',
            'differences["2_threads"] = 0.0',
        ),
        ("infinity-is-nothing", "np.nan_to_num(difference, nan=np.inf, posinf=np.inf)", "np.nan_to_num(difference)"),
        (
            "rows-may-sum-to-anything",
            "max(largest(probabilities, softmax), largest(probabilities.sum(1), np.ones(len(logits))))",
            "largest(probabilities, softmax)",
        ),
    ),
    *_of(
        "parity",
        "okdc/bundle/checks.py",
        "tests/deploy/test_parity.py",
        ("floor-times-hundred", "FLOOR = 1e-5", "FLOOR = 1e-3"),
        ("no-partial-batch", "PROBE = 135", "PROBE = 128"),
    ),
    *_of(
        "parity",
        "okdc/deploy/torch_reference.py",
        "tests/deploy/test_parity.py",
        (
            "float64-in-float32",
            "self.double = copy.deepcopy(network).double()",
            "self.double = copy.deepcopy(network).double().float().double()",
        ),
    ),
    *_of(
        "parity",
        "okdc/bundle/structure.py",
        "tests/deploy/test_onnx.py",
        (
            "any-operator",
            "_check_operators(model, OPERATORS)\n    if _unfolded",
            "pass\n    if _unfolded",
            "test_a_wrong_structure_is_refused_by_name",
        ),
        (
            "other-labels",
            '    if wrong:\n        raise CheckFailed(\n            "structure",\n            f"metadata {wrong[0]}',
            '    if False:\n        raise CheckFailed(\n            "structure",\n            f"metadata {wrong[0]}',
            "test_a_wrong_structure_is_refused_by_name",
        ),
        (
            "unfolded-norm",
            "    if _unfolded(model.graph):",
            "    if False:",
            "test_a_wrong_structure_is_refused_by_name",
        ),
    ),
]

PRECISION = [
    *_of(
        "precision",
        "okdc/precision/gate.py",
        "tests/precision/test_gate.py",
        (
            "int8-tolerance-times-ten",
            "max(2 * float(reduced.max() - reduced.min()) / 255, FLOOR)",
            "max(20 * float(reduced.max() - reduced.min()) / 255, FLOOR)",
        ),
        (
            "float16-tolerance-times-ten",
            "max(4 * largest(reduced, float32), FLOOR)",
            "max(40 * largest(reduced, float32), FLOOR)",
        ),
        (
            "top1-may-fall",
            "if _exceeds(predictions.drop, allowed := max(gates.max_drop, image_pct)):",
            "if _exceeds(0 * predictions.drop, allowed := max(gates.max_drop, image_pct)):",
        ),
        ("predictions-may-change", "if _exceeds(100 - predictions.agreement_pct,", "if _exceeds(0.0,"),
        ("classes-may-fall", "        *_class_failures(rows),\n", ""),
        (
            "one-image-fails",
            "max(100 - gates.min_agreement, image_pct)",
            "100 - gates.min_agreement",
            "test_one_flip_among_few_images_fails_no_gate",
        ),
        (
            "batches-may-couple",
            "if not value <= tolerance",
            "if False",
        ),
        ("probabilities-of-others", "if not softmax <= FLOOR:", "if False:"),
        ("not-finite-passes", '[] if answers.finite else ["the', '[] if True else ["the'),
        (
            "other-work",
            "if (other_macs := macs(other)) != (model_macs := macs(model)):",
            "if (other_macs := macs(other)) != (model_macs := macs(other)):",
        ),
        (
            "other-metadata",
            "if metadata.get(key) != expected[key]]\n    return failures",
            "if False]\n    return failures",
        ),
        (
            "better-is-worse",
            "self.before.mean()), 100 * float(self.after.mean())",
            "self.after.mean()), 100 * float(self.before.mean())",
        ),
        ("nan-predicts-class-0", "(after.argmax(1) == labels) & finite", "after.argmax(1) == labels"),
    ),
    *_of(
        "precision",
        "okdc/precision/quantize.py",
        "tests/precision/test_quantize.py",
        ("search-by-accuracy-first", "rank = (agreement, top1, -difference)", "rank = (top1, agreement, -difference)"),
        ("search-without-accuracy", "rank = (agreement, top1, -difference)", "rank = (agreement, -difference, top1)"),
        ("search-takes-the-coarser", "rank = (agreement, top1, -difference)", "rank = (agreement, top1, difference)"),
        ("search-takes-the-last-of-equals", "rank > best[0]", "rank >= best[0]"),
        (
            "weights-of-eight-bits",
            "reduce_range=not self.full_range",
            "reduce_range=False",
            "test_weights_have_seven_bits_unless_the_full_range_is_asked_for",
        ),
        (
            "per-tensor-always",
            'per_channel=setting.weights == "per-channel"',
            "per_channel=False",
            "test_each_setting_is_what_it_says",
        ),
        (
            "minmax-always",
            "self.ranges.of(setting.calibration)",
            'self.ranges.of("minmax")',
            "test_each_setting_is_what_it_says",
        ),
        (
            "pixels-quantised-too",
            "nodes_to_exclude=self.excluded",
            "nodes_to_exclude=[]",
            "test_every_kind_of_network_is_quantised_between_its_weights_and_answers_nearly_as_before",
        ),
    ),
    *_of(
        "precision",
        "okdc/precision/ranges.py",
        "tests/precision/test_quantize.py",
        (
            "percentile-cuts-more",
            "CUT = (1 - 0.99999) / 2",
            "CUT = (1 - 0.999) / 2",
            "test_percentile_leaves_out_what_is_rarer_than_one_in_a_hundred_thousand_and_nothing_else",
        ),
        (
            "zeros-count",
            "        counts[half] = counts[half + 1]\n",
            "",
            "test_entropy_keeps_a_range_that_is_used_evenly_and_cuts_off_a_far_outlier",
        ),
        (
            "outliers-left-out",
            "p[-1] += counts[half + width :].sum()",
            "pass",
            "test_the_divergence_is_that_of_its_definition",
        ),
    ),
    *_of(
        "precision",
        "okdc/precision/calibration.py",
        "tests/precision/test_calibration.py",
        (
            "not-by-class",
            "turn = np.concatenate([np.arange(len(members)) for members in rows])",
            "turn = np.arange(len(labels))",
        ),
        ("same-for-every-seed", "np.random.RandomState(seed)", "np.random.RandomState(0)"),
        ("fewer-are-enough", "if len(labels) < FEWEST:", "if False:"),
    ),
    *_of(
        "precision",
        "okdc/deploy/reduced.py",
        "tests/deploy/test_reduced.py",
        (
            "judges-choose",
            'if not len(rows) or judged_on == "validation":',
            "if not len(rows):",
            "test_images_that_judge_do_not_choose_where_there_is_no_test_split",
        ),
        (
            "calibration-chooses",
            "rows = dataset.train[left] if len(left) >= calibration.FEWEST else dataset.train",
            "rows = dataset.train",
            "test_images_that_judge_do_not_choose_where_there_is_no_test_split",
        ),
    ),
    *_of(
        "precision",
        "okdc/precision/regions.py",
        "tests/precision/test_half.py",
        (
            "softmax-reduced-too",
            "            inside.discard(node.name)\n",
            "            pass\n",
            "test_only_what_crosses_the_border_is_cast_and_normalisation_and_softmax_stay_float32",
        ),
    ),
]

STATISTICS = [
    *_of(
        "statistics",
        "okdc/study/stats.py",
        "tests/study/test_compare.py",
        (
            "normal-quantile",
            "t = float(stdtrit(n - 1, 0.5",
            "t = float(stdtrit(1e9, 0.5",
            "test_mean_deviation_and_interval_are_those_of_a_hand_calculation test_the_quantiles_are_those_of_the_tables",
        ),
        (
            "one-sided",
            "0.5 + CONFIDENCE_PCT / 200",
            "CONFIDENCE_PCT / 100",
            "test_mean_deviation_and_interval_are_those_of_a_hand_calculation test_the_quantiles_are_those_of_the_tables",
        ),
        (
            "deviation-not-of-the-mean",
            "statistics.stdev(values) / math.sqrt(n)",
            "statistics.stdev(values)",
            "test_mean_deviation_and_interval_are_those_of_a_hand_calculation",
        ),
        (
            "pairs-by-place",
            "round(row[seed] - base[seed], 4) for seed in seeds",
            "round(a - b, 4) for a, b in zip(row.values(), base.values())",
            "test_differences_are_paired_by_seed_and_the_unmatched_are_named",
        ),
        (
            "zero-is-better",
            '"better" if low > 0',
            '"better" if low >= 0',
            "test_an_interval_that_ends_at_0_resolves_nothing",
        ),
    ),
    *_of(
        "statistics",
        "okdc/study/require.py",
        "tests/study/test_compare.py",
        (
            "not-worse-is-better",
            'word == "better" if sign == ">" else word != "worse"',
            'word != "worse"',
            "test_a_requirement_holds_or_not_by_the_interval",
        ),
    ),
    *_of(
        "statistics",
        "okdc/study/compare.py",
        "tests/study/test_compare.py",
        (
            "export-chosen-on-test",
            'run["kept"]["val_top1_pct"] or 0.0',
            'run["kept"]["top1_pct"] or 0.0',
            "test_the_export_that_comes_next_is_chosen_on_validation",
        ),
    ),
    *_of(
        "statistics",
        "okdc/study/comparable.py",
        "tests/study/test_compare.py",
        (
            "any-budget",
            '**{f"optim.{key}": value for key, value in recipe.optim.model_dump().items()},',
            "",
            "test_runs_that_differ_in_more_than_method_and_seed_are_refused",
        ),
        (
            "any-images",
            '"data_sha256": result.data_sha256[:12],',
            "",
            "test_runs_that_differ_in_more_than_method_and_seed_are_refused",
        ),
        (
            "any-sharing",
            "    if apart:\n",
            "    if False:\n",
            "test_different_methods_that_share_different_stages_are_refused",
        ),
        (
            "doubles-replace",
            "if other != run.path:",
            "if False:",
            "test_two_runs_of_one_variant_and_seed_are_refused_with_both_paths",
        ),
    ),
]

PROFILE = [
    *_of(
        "budget",
        "okdc/profiling/budget.py",
        "tests/profiling/test_budget.py",
        (
            "less-is-at-most",
            'cost < self.value or (self.operator == "<=" and cost == self.value)',
            "cost <= self.value",
            "test_the_most_accurate_on_validation_within_every_limit_is_chosen",
        ),
        ("binary-units", '"k": 10**3', '"k": 2**10', "test_units_are_decimal"),
        (
            "chosen-on-test",
            "key=lambda row: (row.val_top1_pct, -row.params, -row.student)",
            "key=lambda row: (row.top1_pct, -row.params, -row.student)",
            "test_the_most_accurate_on_validation_within_every_limit_is_chosen",
        ),
        (
            "larger-of-equals",
            "(row.val_top1_pct, -row.params, -row.student)",
            "(row.val_top1_pct, row.params, -row.student)",
            "test_of_equal_ones_the_smaller_is_chosen_and_then_the_first",
        ),
        (
            "last-of-equals",
            "-row.params, -row.student)",
            "-row.params, row.student)",
            "test_of_equal_ones_the_smaller_is_chosen_and_then_the_first",
        ),
        (
            "one-limit-is-enough",
            "if all(x.holds(cost[x.name]) for x in limits)",
            "if any(x.holds(cost[x.name]) for x in limits)",
            "test_the_most_accurate_on_validation_within_every_limit_is_chosen",
        ),
        (
            "flops-are-macs",
            '"flops": 2 * row.macs',
            '"flops": row.macs',
            "test_the_most_accurate_on_validation_within_every_limit_is_chosen",
        ),
        (
            "slowest-tenth",
            'network.latency_ms["onnxruntime"]["p50"]',
            'network.latency_ms["onnxruntime"]["p90"]',
            "test_latency_decides_by_the_median_in_onnxruntime",
        ),
    ),
    *_of(
        "profile",
        "okdc/profiling/report.py",
        "tests/profiling/test_profile.py",
        (
            "front-of-equals",
            "other != score and all(a >= b",
            "other != score and all(a > b",
            "test_the_front_is_what_no_other_beats test_the_front_by_its_definition",
        ),
        (
            "front-by-test",
            'MORE, LESS = "val_top1_pct",',
            'MORE, LESS = "top1_pct",',
            "test_the_front_is_what_no_other_beats test_the_front_by_its_definition",
        ),
        (
            "shrink-upside-down",
            "whole[0][what] / kept[0][what]",
            "kept[0][what] / whole[0][what]",
            "test_a_run_shows_its_students_which_one_was_kept_and_the_whole",
        ),
    ),
    *_of(
        "profile",
        "okdc/deploy/count.py",
        "tests/deploy/test_count.py tests/deploy/test_bundle_profile.py::test_to_the_unit "
        "tests/deploy/test_bundle_profile.py::test_a_lower_bound_may_be_exceeded_by_the_graph_and_not_undercut",
        ("one-counter", "if second != macs:", "if False:", "test_counters_that_disagree_are_an_error_not_a_number"),
        (
            "any-graph",
            "if graph == expected or (lower_bound and graph > expected):",
            "if True:",
            "test_macs_are_the_published_ones",
        ),
        (
            "bound-is-exact",
            "if graph == expected or (lower_bound and graph > expected):",
            "if graph == expected:",
            "test_macs_are_the_published_ones",
        ),
        (
            "attention-is-free",
            "uncounted=tuple(sorted(unsupported & HOLD_MACS))",
            "uncounted=()",
            "test_attention_makes_the_count_a_lower_bound",
        ),
    ),
    *_of(
        "profile",
        "okdc/bundle/macs.py",
        "tests/bundle/test_macs.py",
        ("groups-forgotten", "each = math.prod(right[1:])", "each = math.prod(right[1:]) * left[1] // right[1]"),
    ),
]

BACKBONES = [
    *_of(
        "backbones",
        "okdc/backbones/resnet.py",
        "tests/backbones/test_resnet.py",
        (
            "strides-say-otherwise",
            "strides.append(2**stage)",
            "strides.append(2 * stage)",
            "test_channels_and_strides_are_what_an_image_shows",
        ),
        (
            "no-shortcut",
            "return F.relu(y + self.shortcut(x))",
            "return F.relu(y)",
            "test_convolutions_start_with_the_deviation_of_he_et_al_by_outputs "
            "test_a_block_leaves_its_input_and_its_own_maps_alone test_the_stages_and_the_head_in_order_are_the_forward",
        ),
    ),
    *_of(
        "backbones",
        "okdc/backbones/resnet.py",
        "tests/backbones/test_zoo.py",
        (
            "no-shortcut-in-resnet18",
            "return F.relu(y + self.shortcut(x))",
            "return F.relu(y)",
            "test_the_trunk_of_resnet18_and_34_is_torchvisions",
        ),
    ),
    *_of(
        "backbones",
        "okdc/backbones/mobilenet.py",
        "tests/backbones/test_zoo.py",
        (
            "nonlinear-bottleneck",
            "out: Tensor = self.bn3(self.conv3(y))",
            "out: Tensor = F.relu(self.bn3(self.conv3(y)))",
            "test_mobilenets_last_map_is_linear_and_its_activations_have_no_upper_end",
        ),
        (
            "shortcut-where-channels-agree",
            "        if stride == 1:\n",
            "        if stride == 1 and inputs == outputs:\n",
            "test_an_inverted_residual_has_a_shortcut_wherever_its_stride_is_1",
        ),
    ),
    *_of(
        "backbones",
        "okdc/backbones/parts.py",
        "tests/backbones/test_resnet.py",
        (
            "he-by-inputs",
            'mode="fan_out"',
            'mode="fan_in"',
            "test_convolutions_start_with_the_deviation_of_he_et_al_by_outputs",
        ),
    ),
    *_of(
        "backbones",
        "okdc/backbones/msfe.py",
        "tests/backbones/test_msfe.py",
        (
            "extraction-is-raw",
            "raw = (*network.raw[:-1], False)",
            "raw = network.raw",
            "test_what_comes_out_of_it_is_no_sum_that_waits_for_its_normalisation",
        ),
    ),
    *_of(
        "backbones",
        "okdc/backbones/adapters.py",
        "tests/backbones/test_cutting.py",
        (
            "stages-not-compared",
            "if not torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True):",
            "if False:",
            "test_a_forward_of_which_tracing_freezes_something_is_refused",
        ),
        (
            "writes-into-the-map",
            "clone_first(parts[i])",
            "pass",
            "test_a_stage_that_starts_in_place_leaves_the_map_before_it_alone",
        ),
    ),
    *_of(
        "backbones",
        "okdc/backbones/cutting.py",
        "tests/backbones/test_adapters.py",
        (
            "closing-convolution-in-a-stage",
            "        cuts = _without_expansion(plan, cuts)\n",
            "        pass\n",
            "test_the_closing_pointwise_convolution_is_a_part_of_the_head",
        ),
        (
            "no-map-is-raw",
            "any(isinstance(m, _NORMS) for m in readers)",
            "False",
            "test_a_map_that_is_normalised_by_what_reads_it_is_raw",
        ),
    ),
]

VERIFY = [
    *_of(
        "verify",
        "okdc/bundle/bundle.py",
        "tests/bundle/test_hostile.py",
        (
            "hash-not-compared",
            "if sha256 != named.sha256 or len(content) != named.bytes:",
            "if len(content) != named.bytes:",
            "test_every_file_that_is_not_the_manifests_is_named",
        ),
        (
            "link-out-of-the-bundle",
            "if not lies_in(path, folder.resolve()):",
            "if False:",
            "test_a_link_out_of_the_folder_is_not_followed",
        ),
    ),
    *_of(
        "verify",
        "okdc/bundle/verify.py",
        "tests/bundle/test_hostile.py",
        (
            "files-not-read",
            "            bundle.content(name)\n",
            "            pass\n",
            "test_every_file_that_is_not_the_manifests_is_named",
        ),
    ),
    *_of(
        "verify",
        "okdc/bundle/verify.py",
        "tests/bundle/test_verify.py",
        ("accuracy-not-compared", "if abs(top1_pct - recorded) > SAME_PCT:", "if False:"),
        ("labels-not-compared", "        test_images.check_labels(bundle, judging)\n", "        pass\n"),
        ("samples-not-asked", "samples.compare(bundle, precision, session, pixels, cases, models[precision])", "pass"),
    ),
    *_of(
        "verify",
        "okdc/bundle/samples.py",
        "tests/bundle/test_verify.py",
        ("any-answer", "if difference > wanted.tolerance:", "if False:"),
        (
            "any-probabilities",
            "if (off := probabilities_off(logits, probabilities)) > FLOOR:",
            "if (off := probabilities_off(logits, probabilities)) > np.inf:",
        ),
    ),
    *_of(
        "verify",
        "okdc/bundle/test_images.py",
        "tests/bundle/test_verify.py",
        ("any-images", "if (sha256 := proof.of(part.labels)) != expected:", "if (sha256 := expected) != expected:"),
        ("labels-not-hashed", '        whole.update(np.asarray(labels, dtype="<i8").tobytes())\n', ""),
        ("any-number-of-images", "    if len(part.labels) != count:\n", "    if False:\n"),
    ),
    *_of(
        "verify",
        "okdc/bundle/structure.py",
        "tests/bundle/test_hostile.py tests/bundle/test_verify.py",
        ("labels-of-the-file", '"labels": list(manifest.labels), "input"', '"input"'),
        ("colours-of-the-file", '"mean": list(colours.mean), "std": list(colours.std)', '"mean": list(colours.mean)'),
        (
            "weights-of-the-file",
            '"recipe_sha256", "weights_sha256")\n    expected |=',
            '"recipe_sha256")\n    expected |=',
        ),
    ),
]

HASHES = [
    *_of(
        "hashes",
        "okdc/assembly/student.py",
        "tests/assembly/test_student.py",
        ("description-not-proven", "    _prove(description, _read(description), row.student_sha256)\n", ""),
        ("weights-not-proven", "    _prove(path, content, expected_sha256)\n", ""),
        ("anything-proves", "    if sha256 != expected_sha256:\n", "    if False:\n"),
    ),
    *_of(
        "hashes",
        "okdc/assembly/teacher.py",
        "tests/assembly/test_teacher.py",
        (
            "another-teacher",
            "if expected_sha256 not in (None, teacher.sha256):",
            "if False:",
            "test_it_does_not_continue_with_a_teacher_that_was_retrained",
        ),
        (
            "teacher-saw-the-test",
            "if teacher.data_sha256 != data_sha256:",
            "if False:",
            "test_a_teacher_of_other_images_classes_or_sizes_is_refused",
        ),
        (
            "teacher-saw-validation",
            "if value != data.get(key):",
            "if False:",
            "test_a_teacher_of_another_validation_split_is_refused",
        ),
        (
            "teacher-renormalised-the-wrong-way",
            "((mean - trained_mean) / trained_std)",
            "((trained_mean - mean) / trained_std)",
            "test_a_teacher_in_another_normalisation_answers_as_in_its_own",
        ),
    ),
    *_of(
        "hashes",
        "okdc/deploy/evaluate.py",
        "tests/deploy/test_evaluate.py",
        (
            "another-number",
            "if abs(round(top1_pct, 4) - expected_pct) > SAME_PCT:",
            "if False:",
            "test_another_number_than_recorded_is_a_failed_check",
        ),
    ),
    *_of(
        "hashes",
        "okdc/profiling/students.py",
        "tests/profiling/test_profile.py",
        (
            "bundle-of-other-weights",
            "if bundle.manifest.weights_sha256 == info.weights_sha256 else None",
            "",
            "test_a_bundle_of_other_weights_is_not_weighed",
        ),
    ),
]

MUTANTS = (
    *METHODS, *BLOCKS, *COHORT, *LOOP, *SELECTION, *RESUME, *DATA, *PARITY, *PRECISION, *STATISTICS, *PROFILE,
    *BACKBONES, *VERIFY, *HASHES,
)  # fmt: skip
