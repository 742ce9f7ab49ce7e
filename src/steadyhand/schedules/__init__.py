"""Schedules: cron expressions that submit jobs, each tick once.

`scheduler` fires the ticks that are due and settles the jobs that have ended. `registry` has the operations of
callers. A tick is claimed in the transaction that adds its job, so that several services on one store fire it once.
"""
