"""Reporting: figures, tables and pages from run folders, and the pipeline that makes a whole report."""
