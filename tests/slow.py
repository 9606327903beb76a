"""Tests that `pytest -m "not slow"` leaves out, as `pytest --durations` found them: files, or functions in files.

In one place and not at the tests, because it is a measurement of the whole suite: it changes as a whole, with the
machine and with what shares a fixture.
"""

SLOW = (
    "tests/hub/test_faults.py",
    "tests/hub/test_hub_models.py::test_published_models_come_back",
    "tests/hub/test_hub_references.py::test_commands_take_ids",
    "tests/hub/test_publish.py::test_cut_anywhere_then_again",
    "tests/hub/test_publish.py::test_hub_in_trouble",
    "tests/hub/test_stand_in.py::test_upload_cut_at_any_byte",
    "tests/hub/test_stand_in.py::test_upload_cut_at_any_request",
    "tests/importers/test_checkpoints.py::test_bad_files_take_neither_time_nor_memory",
    "tests/importers/test_weight_names.py::test_torchvision_s_weights_compute_the_same_in_timm_s_network",
    "tests/inference/test_classifier_labels.py::test_killed_at_any_moment_and_started_again",
    "tests/inference/test_pointwise_segmenter.py::test_memory_does_not_grow_with_the_height_times_the_classes",
    "tests/models/test_hostile_checkpoints.py::test_hostile_configurations_are_refused",
    "tests/models/test_modeling_deeplab.py::test_installed_classes_are_used_whatever_was_imported_first",
    "tests/models/test_modeling_deeplab.py::test_segmenter_works_where_the_package_is_not_installed",
    "tests/runs/test_affinity_stage.py",
    "tests/runs/test_run.py::test_killed_at_any_time_ends_with_the_same_label_maps",
    "tests/runs/test_run.py::test_same_seed_same_result_and_ground_truth_decides_nothing",
    "tests/runs/test_run.py::test_two_processes_finish_a_run_and_score_like_one",
    "tests/runs/test_run.py::test_two_processes_label_like_one",
    "tests/runs/test_lost_photo.py",
    "tests/runs/test_frozen_trunk.py",
    "tests/runs/test_preprocessing_travels.py",
    "tests/runs/test_refine.py",
    "tests/runs/test_rehearsal.py::test_a_whole_run_with_other_trunks_than_convolutional_ones",
    "tests/runs/test_saliency_stage.py",
    "tests/runs/test_segment.py",
    "tests/test_cli.py::test_interrupted_from_the_keyboard",
    "tests/training/test_distributed.py",
    "tests/training/test_loop.py::test_interrupted_anywhere_the_result_is_bit_identical",
    "tests/training/test_loop.py::test_killed_at_random_moments_the_result_is_bit_identical",
    "tests/training/test_segmenter.py::test_interrupted_the_result_is_bit_identical",
    "tests/test_trunks.py",
    "tests/runs/test_stages.py::test_scores_that_take_longer_than_the_processes_wait_for_each_other",
)
