"""Reporting: figures and tables from run folders, pages and their index.

What notebooks use is here; `report.write_report` and `publish.write_index` stay in
their modules, because a notebook should not wait for nbconvert.
"""

import mmlib.reporting.style
from mmlib.reporting.ablation import (
    ablation_checks,
    ablation_figure,
    ablation_table,
    ablation_verdicts,
    plan_table,
    tuning_table,
)
from mmlib.reporting.curves import loss_curves, lr_curve, recall_curves
from mmlib.reporting.diagnosis import (
    calibration_figure,
    hubness_table,
    people_section,
    recall_by_group_figure,
    similarity_figure,
)
from mmlib.reporting.gallery import gallery_figures, samples_figure, slots_section
from mmlib.reporting.published import published_section, reference_section
from mmlib.reporting.results import (
    change_between,
    changes_section,
    evaluation_checks,
    results_figure,
    results_section,
    results_table,
)
from mmlib.reporting.style import show
from mmlib.reporting.tables import (
    best_epochs_table,
    check_run,
    dataset_table,
    health_table,
    lineage_table,
    model_table,
    parameter_table,
)
