"""What lessons show: tables and pictures of runs, in one look. Needs numpy and matplotlib alone, never torch."""

from handson.show.against import against
from handson.show.components_map import component_map
from handson.show.config_lines import config_change
from handson.show.diff import diff, source
from handson.show.division import axis_table, division_table
from handson.show.folded import answer
from handson.show.inventory import Package
from handson.show.retired import retired_table, unfinished_table
from handson.show.run_plots import communication_bars, loss_curves, memory_bars, step_time_bars
from handson.show.run_tables import (
    communication_table,
    formula_table,
    paper_table,
    parallel_comparison,
    parity_table,
    provenance_table,
    sharding_table,
)
from handson.show.schedule_plots import bubbles, gantt, scaling, stage_memory
from handson.show.schedule_tables import bubble_table, in_flight_table, overlap_table
from handson.show.shard_plots import mesh_map, shard_map, shard_maps
from handson.show.style import number, quantity, relative
from handson.show.tables import Cell, Table, code, failure, lines, link
from handson.show.work_map import work_map

__all__ = [
    "Cell",
    "Package",
    "Table",
    "against",
    "answer",
    "axis_table",
    "bubble_table",
    "bubbles",
    "code",
    "communication_bars",
    "communication_table",
    "component_map",
    "config_change",
    "diff",
    "division_table",
    "failure",
    "formula_table",
    "gantt",
    "in_flight_table",
    "lines",
    "link",
    "loss_curves",
    "memory_bars",
    "mesh_map",
    "number",
    "overlap_table",
    "paper_table",
    "parallel_comparison",
    "parity_table",
    "provenance_table",
    "quantity",
    "relative",
    "retired_table",
    "scaling",
    "shard_map",
    "shard_maps",
    "sharding_table",
    "source",
    "stage_memory",
    "step_time_bars",
    "unfinished_table",
    "work_map",
]
