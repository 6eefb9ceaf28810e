"""From rows of runs to tables and figures."""
