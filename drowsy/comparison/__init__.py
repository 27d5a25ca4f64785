"""Methods side by side at equal savings: recipes, a workbench that works them, one table."""
