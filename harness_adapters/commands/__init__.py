"""Commands that the adapters add to `merge-plugins`: demo, judge, report, sea-data."""
