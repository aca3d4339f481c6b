"""The report: tables, figures and animations of results."""
