"""Reports on an evaluation: tables, figures, analyses and pages."""
