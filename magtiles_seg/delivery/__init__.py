"""From an experiment to production: compare, report, promote, deploy, smoke-test, roll back."""
