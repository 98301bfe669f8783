"""Reporting: figures and tables from run folders; pages, index and the pipeline that makes them.

What notebooks use is here; `pipeline.run_experiment`, `report.write_report` and `index.write_index`
stay in their modules, because a notebook should not wait for nbconvert and papermill.
"""

import mmlib.reporting.own_matplotlib
from mmlib.reporting.ablation import ablation_table, plan_table, tuning_table
from mmlib.reporting.ablation_checks import ablation_checks
from mmlib.reporting.ablation_figure import ablation_figure
from mmlib.reporting.ablation_verdicts import ablation_verdicts
from mmlib.reporting.change import change_between, reference_claim
from mmlib.reporting.checks import check_run, evaluation_checks
from mmlib.reporting.comparison import published_figure, results_figure
from mmlib.reporting.curves import loss_curves, lr_curve, recall_curves
from mmlib.reporting.diagnosis import calibration_figure, recall_by_group_figure, similarity_figure
from mmlib.reporting.diagnosis_tables import (
    agreement_table,
    changed_queries_list,
    changed_queries_table,
    hubness_table,
    human_aware_table,
)
from mmlib.reporting.display import show
from mmlib.reporting.gallery import gallery_figures, samples_figure
from mmlib.reporting.published import why_not_published
from mmlib.reporting.published_section import published_section
from mmlib.reporting.scope import result_scope
from mmlib.reporting.slots import slots_figure
from mmlib.reporting.tables import (
    Table,
    best_epochs_table,
    dataset_table,
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
