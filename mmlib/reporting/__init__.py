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
    agreement_table,
    calibration_figure,
    changed_queries_list,
    changed_queries_table,
    hubness_table,
    human_aware_table,
    recall_by_group_figure,
    similarity_figure,
)
from mmlib.reporting.gallery import gallery_figures, samples_figure, slots_figure
from mmlib.reporting.published import why_not_published
from mmlib.reporting.results import (
    change_between,
    published_figure,
    published_section,
    reference_claim,
    results_figure,
)
from mmlib.reporting.scope import result_scope
from mmlib.reporting.style import show
from mmlib.reporting.tables import (
    Table,
    best_epochs_table,
    check_run,
    dataset_table,
    evaluation_checks,
    lineage_table,
    parameter_table,
    published_table,
    reference_table,
    results_table,
)

__all__ = [
    "Table",
    "ablation_checks",
    "ablation_figure",
    "ablation_table",
    "ablation_verdicts",
    "agreement_table",
    "best_epochs_table",
    "calibration_figure",
    "change_between",
    "changed_queries_list",
    "changed_queries_table",
    "check_run",
    "dataset_table",
    "evaluation_checks",
    "gallery_figures",
    "hubness_table",
    "human_aware_table",
    "lineage_table",
    "loss_curves",
    "lr_curve",
    "parameter_table",
    "plan_table",
    "published_figure",
    "published_section",
    "published_table",
    "recall_by_group_figure",
    "recall_curves",
    "reference_claim",
    "reference_table",
    "result_scope",
    "results_figure",
    "results_table",
    "samples_figure",
    "show",
    "similarity_figure",
    "slots_figure",
    "tuning_table",
    "why_not_published",
]
